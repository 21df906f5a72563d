"""LitServe around ONNX Runtime, as its documentation shows it.

Run it in the environment of litserve.txt, from the root of the repository:
python -m service.bench.rivals.litserve_server MODEL.onnx --port 8002

There is no `from __future__ import annotations`, because LitServe compares annotations with its
classes.
"""

import argparse
from typing import Any

import litserve as ls
import onnxruntime as ort
from fastapi import Request, Response

from service.bench.rivals.pictures import input_of, mask_png, model_input


class Segmenter(ls.LitAPI):  # type: ignore[misc] # not installed where types are checked
    """An exported file; each worker is a process with its own session."""

    def __init__(self, file: str, threads: int) -> None:
        super().__init__(api_path="/segment")
        self.file = file
        self.threads = threads

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the model; `threads` 0 is ONNX Runtime's default, all CPUs."""
        ort.set_default_logger_severity(3)  # it warns of inputs with defaults
        options = ort.SessionOptions()
        options.intra_op_num_threads = self.threads
        self.session = ort.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])
        self.input = input_of(self.session)

    def decode_request(self, request: Request) -> Any:
        """The photo of the form field `file`."""
        return model_input(request["file"].file, self.input)

    def predict(self, x: Any) -> Any:
        """Run the model on one photo."""
        pixels, own, part = x
        (labels,) = self.session.run(["labels"], {"image": pixels})
        return labels[0], own, part

    def encode_response(self, output: Any) -> Response:
        """The mask as PNG."""
        return Response(mask_png(*output), media_type="image/png")


def main() -> None:
    """Serve until a signal ends it."""
    p = argparse.ArgumentParser(description="Serve an exported file with LitServe.")
    p.add_argument("file", help="exported file")
    p.add_argument("--port", type=int, required=True, help="port to listen on")
    p.add_argument("--workers", type=int, default=1, help="processes, one photo at a time each")
    p.add_argument("--threads", type=int, default=0, help="of each worker; 0: all CPUs")
    args = p.parse_args()
    server = ls.LitServer(
        Segmenter(args.file, args.threads),
        accelerator="cpu",
        workers_per_device=args.workers,
        healthcheck_path="/readyz",
        timeout=120,
    )
    server.run(port=args.port, log_level="warning", generate_client_file=False)


if __name__ == "__main__":
    main()

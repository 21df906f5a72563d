"""A FastAPI `def` handler around ONNX Runtime, as tutorials write it.

Run it in the environment of fastapi.txt, from the root of the repository:
python -m service.bench.rivals.fastapi_server MODEL.onnx --port 8001
"""

from __future__ import annotations

import argparse

import onnxruntime as ort
import uvicorn
from fastapi import FastAPI, Response, UploadFile

from service.bench.rivals.pictures import input_of, mask_png, model_input


def create_app(file: str) -> FastAPI:
    """Create an application for one exported file; ONNX Runtime uses all CPUs by default."""
    ort.set_default_logger_severity(3)  # it warns of inputs with defaults
    session = ort.InferenceSession(file, providers=["CPUExecutionProvider"])
    target = input_of(session)
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> str:
        return "ready"

    @app.post("/segment", response_class=Response)
    def segment(file: UploadFile) -> Response:
        pixels, own, part = model_input(file.file, target)
        (labels,) = session.run(["labels"], {"image": pixels})
        return Response(mask_png(labels[0], own, part), media_type="image/png")

    return app


def main() -> None:
    """Serve until a signal ends it."""
    p = argparse.ArgumentParser(description="Serve an exported file with a plain FastAPI handler.")
    p.add_argument("file", help="exported file")
    p.add_argument("--port", type=int, required=True, help="port to listen on")
    args = p.parse_args()
    uvicorn.run(create_app(args.file), port=args.port, log_level="warning")


if __name__ == "__main__":
    main()

"""Serve a PyTorch model the way tutorials do: `python -m export.plain_handler CKPT`.

`make bench` compares the service with this handler. The comparison is fair: the same
checkpoint in eval mode without gradients, the same decoding and input size, the same
number of threads, masks as PNG. One request runs at a time: in a thread pool PyTorch's
own threads would compete with each other.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Response, UploadFile
from PIL import Image, ImageOps

from export.graph import LabelGraph
from model import arguments, checkpoint
from service.inference import cpus


def create_app(source: Path, size: tuple[int, int], device: str = "cpu") -> FastAPI:
    """An application with one checkpoint, for input of `size` (H, W)."""
    height, width = size
    graph = LabelGraph(checkpoint.load(source)).to(device).eval()
    app = FastAPI()

    @app.get("/readyz")
    def ready() -> str:
        return "ready"

    @app.post("/segment", response_class=Response)
    async def segment(file: UploadFile) -> Response:
        image = ImageOps.exif_transpose(Image.open(io.BytesIO(await file.read()))).convert("RGB")
        photo = image.copy()
        photo.thumbnail((width, height), Image.Resampling.BILINEAR)
        pixels = np.full((1, height, width, 3), 127, np.uint8)
        pixels[0, : photo.height, : photo.width] = np.asarray(photo)
        with torch.inference_mode():
            labels = graph(torch.from_numpy(pixels).to(device))[0][0].cpu().numpy()
        mask = Image.fromarray(labels[: photo.height, : photo.width])
        out = io.BytesIO()
        mask.resize(image.size, Image.Resampling.NEAREST).save(out, "PNG")
        return Response(out.getvalue(), media_type="image/png")

    return app


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal ends it."""
    p = argparse.ArgumentParser(prog="python -m export.plain_handler", description=__doc__)
    arguments.add_checkpoint(p)
    p.add_argument("--port", type=int, required=True, help="port to listen on")
    size = "input size in pixels (default: 513,513)"
    p.add_argument("--size", type=arguments.size, metavar="H,W", default=(513, 513), help=size)
    p.add_argument("--device", default="cpu", help="torch device (default: cpu)")
    args = p.parse_args(argv)
    torch.set_num_threads(cpus.available())
    app = create_app(args.checkpoint, args.size, args.device)
    uvicorn.run(app, port=args.port, log_level="warning")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

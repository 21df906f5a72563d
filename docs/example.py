"""Draw docs/example.jpg from the answers of a running service.

For each sample photo: the overlay as the service answers it, and the photo with everything
outside of one class faded. Run it from the root of the checkout, again for each new model:

    make serve                                          # in another terminal
    PYTHONPATH=. .venv-serve-cpu/bin/python docs/example.py  # or with the URL of another service
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from service.client import Client
from service.settings import SAMPLES

SHOWN = {"cat.jpg": "cat", "astronaut.jpg": "person"}  # the class that stays in each photo
HEIGHT = 300  # of the picture, in pixels
GAP = 8
FADED = 0.25  # how much of the background's contrast is left


def tiles(client: Client, photo: Path, name: str) -> list[Image.Image]:
    """The overlay of a photo, and the photo without what is not of class `name`."""
    options = {"contour": 2, "overlay_format": "png"}
    overlay = client.segment(photo, output="overlay", options=options).content
    mask = client.segment(photo, output="mask", options={"classes": name}).content
    found = np.asarray(Image.open(io.BytesIO(mask))) > 0  # (H, W)
    with Image.open(photo) as image:
        grey = Image.eval(image.convert("L"), lambda value: int(255 - FADED * (255 - value)))
        cut_out = Image.composite(image.convert("RGB"), grey.convert("RGB"), Image.fromarray(found))
    return [Image.open(io.BytesIO(overlay)).convert("RGB"), cut_out]


def row(pictures: list[Image.Image]) -> Image.Image:
    """The pictures side by side, at one height."""
    scaled = [each.resize((each.width * HEIGHT // each.height, HEIGHT)) for each in pictures]
    width = sum(each.width + GAP for each in scaled) - GAP
    joined = Image.new("RGB", (width, HEIGHT), "white")
    x = 0
    for each in scaled:
        joined.paste(each, (x, 0))
        x += each.width + GAP
    return joined


def main() -> None:
    """Ask the service at the URL of the command line, and write the picture."""
    url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8000"
    with Client(url) as client:
        pictures = [
            tile for photo, name in SHOWN.items() for tile in tiles(client, SAMPLES / photo, name)
        ]
    row(pictures).save(Path("docs/example.jpg"), quality=90)


if __name__ == "__main__":
    main()

"""A Nuclio function for CVAT's "Automatic annotation" and AI tools: docker/nuclio.

CVAT posts {"image": base64} and expects a list of shapes, each with `label`, `type`, `points`
and, for masks, the pixels of its box followed by the box.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
from typing import Any

from annotations.writing import Form, Piece, whole
from service.client import Client, ClientError
from service.label_tools.drafts import Drafter

BACKGROUND = "background"


def init_context(context: Any) -> None:
    """Called by Nuclio once: the service and the options come from the environment."""
    shapes: Form = "masks" if os.environ.get("DEEPLAB_SHAPES") == "masks" else "polygons"
    context.user_data.drafter = Drafter(
        Client(os.environ["DEEPLAB_URL"], api_key=os.environ.get("DEEPLAB_API_KEY")),
        os.environ.get("DEEPLAB_MODEL"),
        shapes,
        float(os.environ.get("DEEPLAB_TOLERANCE", "1")),
        int(os.environ.get("DEEPLAB_MIN_AREA", "50")),
    )


def handler(context: Any, event: Any) -> Any:
    """Called by Nuclio for each photo."""
    status, answer = respond(context.user_data.drafter, event.body)
    return context.Response(
        body=json.dumps(answer),
        headers={},
        content_type="application/json",
        status_code=status,
    )


def respond(drafter: Drafter, body: Any) -> tuple[int, Any]:
    """The status and the answer to one request."""
    try:
        request = body if isinstance(body, dict) else json.loads(body)
        photo = base64.b64decode(request["image"], validate=True)
    except (ValueError, KeyError, TypeError, binascii.Error) as error:
        return 400, {"error": f'no JSON with "image" in base64: {error}'}
    try:
        names = drafter.about().classes
        labels = {number: name for number, name in enumerate(names) if name != BACKGROUND}
        draft = drafter.draft(photo, "photo", labels)
    except (ClientError, ValueError) as error:
        return 502, {"error": str(error)}
    return 200, [_shape(piece, draft.photo.size) for piece in draft.pieces]


def _shape(piece: Piece, size: tuple[int, int]) -> dict[str, Any]:
    score = "1.0" if piece.score is None else f"{piece.score:.4f}"
    common = {"confidence": score, "label": piece.label}
    if piece.patch is None:
        points = [float(number) for corner in piece.ring for number in corner]
        return {**common, "type": "polygon", "points": points}
    left, top, width, height = (int(number) for number in piece.box())
    pixels = whole(piece.patch, size)[top : top + height, left : left + width]
    flat = pixels.ravel().astype(int).tolist()
    box = [left, top, left + width - 1, top + height - 1]
    corners = [(left, top), (left + width, top), (left + width, top + height), (left, top + height)]
    points = [float(number) for corner in corners for number in corner]
    return {**common, "type": "mask", "points": points, "mask": [*flat, *box]}

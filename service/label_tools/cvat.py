"""A function for CVAT's auto-annotation: cvat-cli runs it here, on any task.

    cvat-cli task auto-annotate TASK_ID --function-module service.label_tools.cvat \\
        -p url=str:http://localhost:8000 -p shapes=str:polygons --clear-existing

Needs cvat-sdk (pip install cvat-cli) beside the extra `labels`.
"""

from __future__ import annotations

import io
from typing import Any

import cvat_sdk.auto_annotation as cvataa
import cvat_sdk.masks
import PIL.Image

from annotations.writing import Form, Piece, whole
from service.client import Client, UsageError
from service.label_tools.drafts import Drafter

BACKGROUND = "background"


class Function:
    """A detection function of cvat-sdk: `spec` names the labels, `detect` draws the shapes."""

    def __init__(self, drafter: Drafter) -> None:
        self._drafter = drafter
        classes = drafter.about().classes
        self._labels = {number: name for number, name in enumerate(classes) if name != BACKGROUND}
        kind = "polygon" if drafter.form == "polygons" else "mask"
        self.spec = cvataa.DetectionFunctionSpec(
            labels=[
                cvataa.label_spec(name, number, type=kind) for number, name in self._labels.items()
            ]
        )

    def close(self) -> None:
        """Close the connections to the service."""
        self._drafter.client.close()

    def detect(self, context: cvataa.DetectionFunctionContext, image: PIL.Image.Image) -> list[Any]:
        """Draw the shapes of one frame, as CVAT shows it."""
        stream = io.BytesIO()
        image.convert("RGB").save(stream, "PNG", compress_level=1)
        form: Form = "polygons" if context.conv_mask_to_poly else self._drafter.form
        draft = self._drafter.draft(stream.getvalue(), context.frame_name, self._labels, form)
        threshold = context.conf_threshold or 0.0
        return [
            _shape(piece, draft.photo.size)
            for piece in draft.pieces
            if piece.score is None or piece.score >= threshold
        ]


def _shape(piece: Piece, size: tuple[int, int]) -> Any:
    if piece.patch is not None:
        return cvataa.mask(piece.class_id, cvat_sdk.masks.encode_mask(whole(piece.patch, size)))
    points = [float(number) for corner in piece.ring for number in corner]
    return cvataa.polygon(piece.class_id, points)


def create(
    url: str,
    *,
    model: str | None = None,
    shapes: str = "polygons",
    tolerance: float = 1.0,
    min_area: int = 50,
    api_key: str | None = None,
) -> Function:
    """Create the function; cvat-cli calls this with the parameters of -p. Raises UsageError."""
    forms: dict[str, Form] = {"polygons": "polygons", "masks": "masks"}
    if shapes not in forms:
        raise UsageError(f"shapes={shapes}: choose from {', '.join(forms)}")
    client = Client(url, api_key=api_key)
    try:
        return Function(Drafter(client, model, forms[shapes], tolerance, min_area))
    except BaseException:
        client.close()
        raise

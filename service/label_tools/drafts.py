"""Segment a photo with the service, and turn its mask into shapes for people to correct."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from annotations.errors import Notes
from annotations.writing import Finished, Form, Piece, Writing, pieces
from service.client import Client, ModelInfo, UsageError


@dataclass(frozen=True)
class Draft:
    """The shapes that a model draws on a photo."""

    photo: Finished
    pieces: list[Piece]
    model: str  # its name and the beginning of its digest


@dataclass(frozen=True)
class Drafter:
    """A service, one of its models, and how its masks become shapes."""

    client: Client
    model: str | None = None  # None: the service's default
    form: Form = "polygons"
    tolerance: float = 1.0
    min_area: int = 50

    def __post_init__(self) -> None:
        """Raise UsageError for a negative tolerance or min_area."""
        if not 0 <= self.tolerance < math.inf or self.min_area < 0:
            raise UsageError(
                f"tolerance {self.tolerance:g}, min_area {self.min_area}: give pixels from 0 on"
            )

    def about(self) -> ModelInfo:
        """The model; raises UsageError if the service does not have it."""
        models = self.client.models()
        for model in models:
            if model.name == self.model or (self.model is None and model.default):
                return model
        names = ", ".join(model.name for model in models)
        raise UsageError(f"model {self.model}: the service has {names}")

    def draft(
        self, content: bytes, name: str, labels: Mapping[int, str], form: Form | None = None
    ) -> Draft:
        """Draw the shapes of the classes in `labels`; raises ClientError and ValueError."""
        answer = self.client.segment(content, output="mask,json", model=self.model)
        files = answer.files()
        with Image.open(io.BytesIO(files["mask.png"])) as picture:
            ids = np.asarray(picture)
        found = json.loads(files["result.json"])["classes"]
        scores = {each["id"]: each["confidence"] for each in found if "confidence" in each}
        photo = Finished(name, ids, scores)
        shapes = form or self.form
        writing = Writing(
            labels,
            {},
            form=shapes,
            tolerance=self.tolerance if shapes == "polygons" else 0.0,
            min_area=self.min_area,
        )
        version = f"{answer.model} {(answer.digest or '')[:12]}".strip()
        return Draft(photo, pieces(photo, writing, Notes()), version)


def matched(
    classes: tuple[str, ...], wanted: Mapping[str, str], labels: tuple[str, ...]
) -> dict[int, str]:
    """Return the label of each class id: from `wanted` (class -> label), else of the same name.

    Upper and lower case count as equal. Classes without a label are left out.
    """
    known = {label.lower(): label for label in labels}
    found = {}
    for number, name in enumerate(classes):
        label = known.get(wanted.get(name, name).lower())
        if label is not None:
            found[number] = label
    return found

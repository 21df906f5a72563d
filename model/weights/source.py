"""Turn a published file into a converted network: unpack, read and describe it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from model.checkpoint import BackboneCard
from model.convert import from_tensorflow, from_torchvision, labels
from model.convert.accounting import Converted, ConvertError
from model.data import archives
from model.data.pairs import DatasetError
from model.weights import digests
from model.weights.catalogue import Weights

CHECKPOINT = re.compile(r"(?P<prefix>.+)\.(index|data-\d{5}-of-\d{5})")
GRAPH = re.compile(r"frozen_inference_graph\.pb")
LARGEST = 2_000_000_000  # bytes of one member; the largest published ones have about 500 MB
# The split that a network was trained on, by what a recipe calls it; others are not data sets here.
SPLITS = {"voc": "trainaug", "cityscapes": "train"}


def convert(weights: Weights, path: Path, scratch: Path) -> Converted:
    """Read the published file, unpacked below `scratch` for a while; raises ConvertError."""
    names = labels.KNOWN.get(weights.dataset)
    if path.suffix == ".pth":
        converted = from_torchvision.convert(
            path, output_stride=weights.output_stride, crop_size=weights.crop_size, labels=names
        )
        return described(converted, weights, path)
    options = from_tensorflow.ConversionOptions(
        output_stride=weights.output_stride, crop_size=weights.crop_size, labels=names
    )
    if path.suffix == ".tflite":
        return described(from_tensorflow.convert(path, options), weights, path)
    scratch.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=scratch, prefix=".unpacked-") as folder:
        return described(
            from_tensorflow.convert(unpack(path, Path(folder)), options), weights, path
        )


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack the checkpoint, or else the frozen graph; returns what to convert.

    Only regular files of these names are written, directly into `folder`. Paths, links and
    other members of the archive are ignored. Raises ConvertError.
    """
    try:
        names = _extract(archive, folder, CHECKPOINT)
        if names:
            return folder / _prefix(archive, names)
        if _extract(archive, folder, GRAPH):
            return folder / "frozen_inference_graph.pb"
    except DatasetError as error:  # a damaged archive
        raise ConvertError(str(error)) from None
    raise ConvertError(f"{archive} holds neither a checkpoint nor a frozen graph")


def _extract(archive: Path, folder: Path, wanted: re.Pattern[str]) -> list[str]:
    """Write the members with these names; return the names."""
    written: list[str] = []
    with archives.naming(archive):
        for member, size, stream in archives.members(archive):
            name = PurePosixPath(member).name
            if not wanted.fullmatch(name):
                continue
            if size > LARGEST or name in written:
                raise ConvertError(f"{archive}: {member} is there twice, or too large: {size}")
            with (folder / name).open("xb") as out:
                shutil.copyfileobj(stream, out)
            written.append(name)
    return written


def _prefix(archive: Path, names: list[str]) -> str:
    """Return `model.ckpt-30000` from the files' names; raises ConvertError if there are several."""
    prefixes = {match["prefix"] for name in names if (match := CHECKPOINT.fullmatch(name))}
    if len(prefixes) > 1:
        raise ConvertError(f"{archive} holds several checkpoints: {', '.join(sorted(prefixes))}")
    return prefixes.pop()


def described(converted: Converted, weights: Weights, path: Path) -> Converted:
    """Record in the card where the weights come from."""
    digest = digests.sha256(path)
    source = (
        f"{weights.name}: {weights.url} (SHA-256 {digest}), {weights.licence}, "
        f"trained on {weights.trained_on}; converted"
    )
    if isinstance(converted.card, BackboneCard):
        return converted._replace(card=converted.card.model_copy(update={"source": source}))
    training: dict[str, Any] = {
        "published_weights": weights.name,
        "url": weights.url,
        "sha256": digest,
        "licence": weights.licence,
        "trained_on": weights.trained_on,
    }
    if weights.miou:
        training["published_miou"] = weights.miou
    if weights.dataset in SPLITS:
        training |= {"dataset": weights.dataset, "split": SPLITS[weights.dataset]}
    update = {"source": source, "training": training}
    return converted._replace(card=converted.card.model_copy(update=update))

"""Turn published weights into our checkpoint: download, compare, convert, check, write."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from model import checkpoint
from model.checkpoint import Card
from model.convert.accounting import summary
from model.weights import digests, selfcheck, source
from model.weights.catalogue import Weights
from model.weights.digests import DigestError
from model.weights.download import download

DOWNLOADS = "downloads"  # below the folder of the checkpoints

Say = Callable[[str], None]


def get(weights: Weights, out: Path, given: Path | None = None, *, say: Say = print) -> Path:
    """Write the checkpoint OUT/NAME and return its weights' path; say what was done.

    The published file is `given`, or is downloaded to OUT/downloads and kept there.
    Raises DownloadError, DigestError, ConvertError, SelfCheckError or OSError; none of
    them leaves a checkpoint behind.
    """
    path = given or out / DOWNLOADS / weights.file_name
    record = out / DOWNLOADS / f"{weights.file_name}.sha256"
    say(f"{path}: {_compared(path, weights, record, own=given is None, say=say)}")
    converted = source.convert(weights, path, out)
    say(summary(converted))
    found = selfcheck.run(converted)
    if found.miou is None:
        say("self-check: all variables used, finite numbers on a photo")
    else:
        classes = ", ".join(found.classes)
        say(f"self-check: all variables used, mIoU {found.miou:.2f} on a photo ({classes})")
    written = checkpoint.save(out / weights.name, *converted)
    say(f"wrote {written}")
    if weights.digest is None and not record.exists():
        digests.keep(path, weights, record)
        say(f"recorded the digest in {record}: later files are compared with it")
    return written


def _compared(path: Path, weights: Weights, record: Path, *, own: bool, say: Say) -> str:
    """Compare the file's digest; download it if it is our copy and missing or damaged."""
    if own and path.exists():
        try:
            return digests.check(path, weights, record)
        except DigestError as error:
            say(f"{error}; downloading it again")
            path.unlink()
    if own:
        say(f"downloading {weights.url} ({weights.size / 1e6:.0f} MB)")
        download(weights.url, path, size=weights.size, exact_size=weights.exact_size)
    try:
        return digests.check(path, weights, record)
    except DigestError as error:
        if not own:
            raise
        path.unlink()
        raise DigestError(f"{error}; the download was deleted") from None


def export(weights: Weights, out: Path) -> int:
    """Export the checkpoint to OUT/NAME.onnx by `python -m export`; returns its exit status.

    It runs in a separate process, because `model` does not import `export`.
    """
    sys.stdout.flush()  # so that this output precedes the other process's
    command = [sys.executable, "-m", "export", str(out / weights.name)]
    return subprocess.run(
        [*command, "-o", str(out / f"{weights.name}.onnx")], check=False
    ).returncode


def has_head(path: Path) -> bool:
    """Return whether a checkpoint is a whole network, which can be exported, or only a backbone."""
    return isinstance(checkpoint.read_any_card(path), Card)

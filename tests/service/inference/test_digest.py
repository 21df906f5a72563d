"""The digest is the exporter's, and any change of the graph shows in it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
import pytest

from service.inference.digest import graph_digest
from service.settings import BUNDLED
from tests.service import onnx_models


def without_metadata(path: Path) -> str:
    """The digest, computed with the onnx package."""
    model = onnx.load(path)
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


@pytest.mark.parametrize("metadata", [{}, {"key": "value"}, {"long": "x" * 300, "other": ""}])
def test_metadata_do_not_count(tmp_path: Path, metadata: dict[str, str]) -> None:
    path = onnx_models.save(tmp_path / "tiny.onnx", metadata)
    assert graph_digest(path.read_bytes()) == without_metadata(path)


def test_the_bundled_file_carries_its_own_digest() -> None:
    (path,) = BUNDLED.glob("*.onnx")
    (contract,) = (prop.value for prop in onnx.load(path).metadata_props)
    assert f'"graph_sha256":"{graph_digest(path.read_bytes())}"' in contract


def test_every_other_byte_counts(tmp_path: Path) -> None:
    whole = onnx_models.save(tmp_path / "tiny.onnx", {}).read_bytes()
    digests = {graph_digest(whole)}
    for at in range(len(whole)):
        digests.add(graph_digest(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]))
    assert len(digests) == len(whole) + 1


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff" * 99, b"no protobuf", b"\x3a\xff\xff\x7f"])
def test_a_file_that_is_not_a_model_has_a_digest_too(data: bytes) -> None:
    assert len(graph_digest(data)) == 64

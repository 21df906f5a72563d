"""Checkpoints and frozen graphs that TensorFlow wrote, read without it; damage is named."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.convert import frozen_graph, tensor_bundle
from model.convert.accounting import ConvertError
from model.convert.variables import read
from tests.model.convert import bundles
from tests.model.convert.tensorflow.make import values

FILES = Path(__file__).parent / "tensorflow"
SUFFIXES = (".index", ".data-00000-of-00001")


def same(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].dtype == np.asarray(value).dtype and np.array_equal(found[name], value)
        for name, value in expected.items()
    )


def copied(folder: Path, name: str = "model.ckpt") -> Path:
    for suffix in SUFFIXES:
        shutil.copy(FILES / f"{name}{suffix}", folder)
    return folder / name


@pytest.mark.parametrize(
    "name",
    [
        "model.ckpt",
        "model.ckpt.index",
        "model.ckpt.meta",
        f"model.ckpt{SUFFIXES[1]}",
        "sharded.ckpt",
    ],
)
def test_every_variable_of_a_checkpoint_that_tensorflow_wrote_is_read(name: str) -> None:
    """They are float, half, integer, scalar and empty, and are in one data file or in two."""
    assert same(read(FILES / name), values())


def test_every_variable_of_a_frozen_graph_that_tensorflow_wrote_is_read() -> None:
    """Constants that are not variables are left out; one number may stand for a whole array."""
    wanted = {
        name: value
        for name, value in values().items()
        if frozen_graph.VARIABLE.search(name) and "Momentum" not in name
    }
    assert same(read(FILES / "frozen_inference_graph.pb"), wanted)


def test_the_checkpoints_of_a_folder_are_named(tmp_path: Path) -> None:
    path = copied(tmp_path)
    with pytest.raises(ConvertError, match=f"is a folder: give a checkpoint in it: {path}$"):
        read(tmp_path)


def test_python_objects_of_tensorflow_2_are_left_out() -> None:
    assert list(read(FILES / "text.ckpt")) == ["w"]


@pytest.mark.parametrize(("shards", "pairs"), [(1, 64), (3, 5)])
def test_our_writer_of_checkpoints_is_read_the_same(
    shards: int, pairs: int, tmp_path: Path
) -> None:
    """This includes many blocks and three data files, as large checkpoints have."""
    bundles.write(tmp_path / "model.ckpt", values(), shards=shards, pairs_in_a_block=pairs)
    assert same(read(tmp_path / "model.ckpt"), values())


def test_our_writer_gives_tensorflows_own_bytes(tmp_path: Path) -> None:
    """The data file is the same; the index differs in a field that says which version wrote it."""
    bundles.write(tmp_path / "model.ckpt", values())
    data = f"model.ckpt{SUFFIXES[1]}"
    assert (tmp_path / data).read_bytes() == (FILES / data).read_bytes()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("sliced.ckpt", "w is cut into slices"),
        ("version1.ckpt", "no checkpoint of version 2"),
        ("nowhere.ckpt", "neither a .pb, .tflite or .npz file nor a checkpoint's prefix"),
        ("nowhere.pb", "does not exist"),
    ],
)
def test_files_that_cannot_be_read_say_why(name: str, says: str) -> None:
    with pytest.raises(ConvertError, match=says):
        read(FILES / name)


def test_every_flipped_bit_of_an_index_or_of_data_is_found(tmp_path: Path) -> None:
    """A checksum or a broken table reveals it. A wrong number is never returned."""
    prefix = copied(tmp_path)
    expected = values()
    generator = random.Random(0)
    for suffix in SUFFIXES:
        path = prefix.with_name(f"{prefix.name}{suffix}")
        good = path.read_bytes()
        for _ in range(60):
            position = generator.randrange(len(good))
            bad = bytearray(good)
            bad[position] ^= 1 << generator.randrange(8)
            path.write_bytes(bad)
            try:
                found = read(prefix)
            except ConvertError:
                continue
            assert same(found, expected), (
                suffix,
                position,
            )  # the bit is in padding that nothing reads
        path.write_bytes(good)


@pytest.mark.parametrize("size", [0, 1, 47, 48, 500, 1500])
def test_an_index_that_is_cut_off_is_an_error(size: int, tmp_path: Path) -> None:
    prefix = copied(tmp_path)
    index = tensor_bundle.index_of(prefix)
    index.write_bytes(index.read_bytes()[:size])
    with pytest.raises(ConvertError, match=r"model\.ckpt\.index is no checkpoint's index"):
        read(prefix)


def test_data_that_is_cut_off_or_missing_is_named(tmp_path: Path) -> None:
    prefix = copied(tmp_path)
    data = prefix.with_name(f"{prefix.name}{SUFFIXES[1]}")
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(ConvertError, match=r"data-00000-of-00001 ends before .*copy it again"):
        read(prefix)
    data.unlink()
    with pytest.raises(ConvertError, match=r"data-00000-of-00001 is missing"):
        read(prefix)


def test_a_shape_that_no_file_can_hold_takes_no_memory(tmp_path: Path) -> None:
    """2^60 numbers, in a graph of some bytes and in an index whose checksums are right."""
    shape = b"".join(bundles.tag(2, bundles.tag(1, 1 << 30)) for _ in range(2))
    tensor = bundles.tag(1, 1) + bundles.tag(2, shape)
    tensor += bundles.tag(5, np.float32(1).tobytes())
    attribute = bundles.tag(1, b"value") + bundles.tag(2, bundles.tag(8, tensor))
    node = bundles.tag(1, b"a/weights") + bundles.tag(2, b"Const") + bundles.tag(5, attribute)
    (tmp_path / "graph.pb").write_bytes(bundles.tag(1, node))
    with pytest.raises(ConvertError, match="would have"):
        read(tmp_path / "graph.pb")
    pairs = [(b"", bundles.tag(1, 1)), (b"w", bundles.tag(1, 1) + bundles.tag(2, shape))]
    (tmp_path / "model.ckpt.index").write_bytes(bundles.table(pairs, 64))
    with pytest.raises(ConvertError, match="would have"):
        read(tmp_path / "model.ckpt")


@pytest.mark.parametrize("content", [b"", b"\x0a", b"not a graph", b"\x0a\xff\xff\xff\xff\x0f"])
def test_a_file_that_is_not_a_graph_is_an_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "graph.pb").write_bytes(content)
    with pytest.raises(ConvertError, match=r"graph\.pb"):
        read(tmp_path / "graph.pb")

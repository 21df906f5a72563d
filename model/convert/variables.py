"""The variables of research/deeplab's networks, by TensorFlow's names, from four kinds of file.

`model.ckpt` (a checkpoint's prefix), `frozen_inference_graph.pb`, an 8-bit or float `.tflite`, and
`.npz`, saved with TensorFlow and NumPy. TensorFlow itself is not needed.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from model.convert import frozen_graph, tensor_bundle, tflite_file
from model.convert.accounting import ConvertError

# What ends the names of a checkpoint's files; its prefix comes before.
PART = re.compile(r"\.(index|meta|data-\d{5}-of-\d{5})$")
Variables = dict[str, np.ndarray[Any, Any]]


def read(path: Path) -> Variables:
    """All variables of the file, by TensorFlow name without `:0`; raises ConvertError."""
    if path.suffix in (".npz", ".pb", ".tflite"):
        if not path.is_file():
            raise ConvertError(f"{path} does not exist")
        reader = {".npz": _read_npz, ".pb": frozen_graph.read, ".tflite": tflite_file.read}
        return reader[path.suffix](path)
    prefix = path.with_name(PART.sub("", path.name))
    if tensor_bundle.index_of(prefix).is_file():
        return tensor_bundle.read(prefix)
    if path.is_dir():
        inside = ", ".join(str(each.with_suffix("")) for each in sorted(path.glob("*.index")))
        raise ConvertError(
            f"{path} is a folder: give a checkpoint in it: {inside or 'it has none'}"
        )
    if path.is_file():
        raise ConvertError(
            f"{path} is no checkpoint of version 2, which has {prefix.name}.index beside it: give "
            "the name before .index, or a .pb, .tflite or .npz file"
        )
    raise ConvertError(
        f"{path} is neither a .pb, .tflite or .npz file nor a checkpoint's prefix, the part of "
        "its name before .index and .data-00000-of-00001"
    )


def _read_npz(path: Path) -> Variables:
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name.removesuffix(":0"): file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConvertError(f"{path} is no .npz of numbers: {error}") from None

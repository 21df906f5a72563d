"""A TensorFlow checkpoint -> an .npz: `python -m model.convert.dump PREFIX OUT.npz`.

A process of its own, because TensorFlow and PyTorch in one crash each other: both
bring an LLVM. Needs NumPy and TensorFlow only, so it also runs on another machine.
"""

from __future__ import annotations

import sys

import numpy as np


def main(arguments: list[str]) -> None:
    """Write every variable under its name, slots and counters included."""
    from tensorflow.train import load_checkpoint  # noqa: PLC0415 - an optional dependency

    prefix, out = arguments
    reader = load_checkpoint(prefix)
    np.savez(out, **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})


if __name__ == "__main__":
    main(sys.argv[1:])

"""Write a TensorFlow checkpoint as .npz: `python -m model.convert.dump PREFIX OUT.npz`.

This runs in a process of its own, because TensorFlow and PyTorch crash each other in one
process: both bring an LLVM. It needs only NumPy and TensorFlow, so it also runs on
another machine.
"""

from __future__ import annotations

import sys

import numpy as np


def main(arguments: list[str]) -> None:
    """Write every variable under its name, including optimiser slots and counters."""
    from tensorflow.train import load_checkpoint  # noqa: PLC0415 - an optional dependency

    prefix, out = arguments
    reader = load_checkpoint(prefix)
    np.savez(out, **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})


if __name__ == "__main__":
    main(sys.argv[1:])

"""Where the data lies that tests share with other checkouts: `shared` beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

SHARED = Path(os.environ.get("DEEPLAB_SHARED", Path(__file__).parents[2] / "shared"))
REFERENCE = SHARED / "reference"

needs_reference = pytest.mark.skipif(
    not REFERENCE.is_dir(),
    reason=f"{REFERENCE} does not exist; set DEEPLAB_SHARED to the folder that holds reference/",
)

"""The lines for FiftyOne in docs/labels.md give it the service's class ids.

FiftyOne stands in another environment: FIFTYONE_PYTHON=/path/to/its/python make test.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from service.client.cli import main as client

PYTHON = os.environ.get("FIFTYONE_PYTHON", "")
ROOT = Path(__file__).parents[3]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(200),
    pytest.mark.skipif(
        not PYTHON, reason="FIFTYONE_PYTHON names no Python with fiftyone installed"
    ),
]
CHECK = """
import numpy as np
np.save("found.npy", samples[0]["prediction"].get_mask())
"""


def lines() -> str:
    """The documented lines before the database is needed."""
    page = (ROOT / "docs" / "labels.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?import fiftyone.*?)```", page, re.DOTALL)
    return str(block).partition("dataset =")[0]


def test_fiftyone_reads_the_class_ids_that_the_client_wrote(
    url: str, content: bytes, expected: NDArray[np.uint8], tmp_path: Path
) -> None:
    """The photo is a PNG by content: the client does not mind its name."""
    photos, out = tmp_path / "photos", tmp_path / "out"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(content)
    assert client([url, str(photos), "-o", str(out), "--mask-format", "gray"]) == 0
    done = subprocess.run(
        [PYTHON, "-c", lines() + CHECK],
        cwd=tmp_path,
        env=os.environ | {"FIFTYONE_DO_NOT_TRACK": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = np.load(tmp_path / "found.npy")
    assert found.shape == expected.shape
    assert (found == expected).all()

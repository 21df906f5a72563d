"""`docker/check_wheels.py` checks wheels whose libraries are only the headers of ELF files."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

SCRIPT = Path(__file__).parents[2] / "docker" / "check_wheels.py"
AARCH64, X86_64 = 183, 62


def library(machine: int, symbols: bytes = b"", alignments: tuple[int, ...] = ()) -> bytes:
    """Return the headers of an ELF file: of the whole file, and one for each segment to load."""
    of_file = (
        b"\x7fELF" + bytes(14) + struct.pack("<H12xQ14xHH6x", machine, 64, 56, len(alignments))
    )
    return of_file + b"".join(struct.pack("<I44xQ", 1, each) for each in alignments) + symbols


def checked(folder: Path, content: bytes) -> tuple[int, str]:
    """Return the exit code and the output for a folder with one wheel of one library."""
    with ZipFile(folder / "some-1.0-cp311-cp311-manylinux_2_28_aarch64.whl", "w") as files:
        files.writestr("some/__init__.py", "GLIBC_2.99 = 'text, not a symbol'")
        files.writestr("some/core.so", content)
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout


def test_libraries_of_this_machine_and_an_older_glibc_are_fine(tmp_path: Path) -> None:
    code, told = checked(tmp_path, library(AARCH64, b"GLIBC_2.17\0GLIBC_2.36\0"))
    assert (code, told) == (0, "1 wheels, 1 for arm64, 0 problems\n")


@pytest.mark.parametrize(
    ("machine", "symbols", "message"),
    [
        (X86_64, b"GLIBC_2.17\0", "some/core.so is for machine 62, not arm64"),
        (AARCH64, b"GLIBC_2.4\0GLIBC_2.38\0", "some/core.so needs glibc 2.38"),
    ],
)
def test_a_library_that_the_image_cannot_load_is_named(
    machine: int, symbols: bytes, message: str, tmp_path: Path
) -> None:
    """A wheel's name is only a claim of its builder, so the library itself is read."""
    code, told = checked(tmp_path, library(machine, symbols))
    assert code == 1
    assert message in told


@pytest.mark.parametrize(("alignment", "code"), [(65536, 0), (16384, 1), (4096, 1)])
def test_a_library_must_load_on_kernels_with_pages_of_64_kib(
    alignment: int, code: int, tmp_path: Path
) -> None:
    """The loader refuses a segment that is aligned to less than a page."""
    found, told = checked(tmp_path, library(AARCH64, alignments=(65536, alignment)))
    assert found == code
    refused = f"some/core.so does not load in pages of more than {alignment} bytes"
    assert (refused in told) == bool(code)

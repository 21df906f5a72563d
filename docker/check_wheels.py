"""Check the wheels that an image for arm64 installs: `python docker/check_wheels.py FOLDER`.

Reads the libraries in the wheels of FOLDER: each must be for arm64, need no newer C library than
the base image has, and load on kernels with pages of 16 or 64 KiB. With
`--lock docker/requirements-cpu.txt` the wheels of that lock are downloaded into FOLDER first, with
their hashes, as the build of the image does. Nothing is run, so any host can do this.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from zipfile import ZipFile

ELF = b"\x7fELF"
AARCH64 = 183  # EM_AARCH64 of the ELF specification
GLIBC = (2, 36)  # of Debian 12
PT_LOAD = 1  # of the ELF specification: a segment that is mapped into memory
LARGEST_PAGE = 65536  # of arm64 kernels, such as RHEL 8's; Apple silicon has 16 KiB
# What pip takes on such a host: the tags up to its C library's version.
PLATFORMS = ("manylinux2014_aarch64", *(f"manylinux_2_{minor}_aarch64" for minor in range(17, 37)))


def download(lock: Path, folder: Path) -> None:
    """Fetch every wheel of a lock file for arm64 and CPython 3.11; raises CalledProcessError."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--require-hashes", "--only-binary", ":all:", "--python-version", "3.11"]
    for platform in PLATFORMS:
        command += ["--platform", platform]
    subprocess.run([*command, "--requirement", lock, "--dest", folder], check=True)


def problems(wheel: Path) -> Iterator[str]:
    """Yield what is wrong with the libraries in a wheel."""
    with ZipFile(wheel) as files:
        for name in files.namelist():
            content = files.read(name)
            if not content.startswith(ELF):
                continue
            (machine,) = struct.unpack_from("<H", content, 18)
            if machine != AARCH64:
                yield f"{wheel.name}: {name} is for machine {machine}, not arm64 ({AARCH64})"
            if (needed := newest_glibc(content)) > GLIBC:
                yield f"{wheel.name}: {name} needs glibc {needed[0]}.{needed[1]}"
            if (alignment := smallest_alignment(content)) < LARGEST_PAGE:
                yield f"{wheel.name}: {name} does not load in pages of more than {alignment} bytes"


def newest_glibc(library: bytes) -> tuple[int, int]:
    """Return the newest version of the C library whose symbols a library names."""
    found = re.findall(rb"GLIBC_(\d+)\.(\d+)", library)
    return max(((int(major), int(minor)) for major, minor in found), default=(0, 0))


def smallest_alignment(library: bytes) -> int:
    """Return the smallest alignment of the segments that an ELF file of 64 bits loads."""
    (table,) = struct.unpack_from("<Q", library, 32)
    size, count = struct.unpack_from("<HH", library, 54)
    headers = [library[table + n * size : table + (n + 1) * size] for n in range(count)]
    loaded = [each for each in headers if struct.unpack_from("<I", each)[0] == PT_LOAD]
    return min((struct.unpack_from("<Q", each, 48)[0] for each in loaded), default=LARGEST_PAGE)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "docker/check_wheels.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="with the wheels")
    parser.add_argument("--lock", type=Path, help="download these wheels, of a lock file, first")
    options = parser.parse_args(argv)
    try:
        if options.lock is not None:
            download(options.lock, options.folder)
    except subprocess.CalledProcessError:
        print(f"error: not every wheel of {options.lock} is to be had for arm64", file=sys.stderr)
        return 1
    wheels = sorted(options.folder.glob("*.whl"))
    found = [problem for wheel in wheels for problem in problems(wheel)]
    native = sum("aarch64" in wheel.name for wheel in wheels)
    print("\n".join([*found, f"{len(wheels)} wheels, {native} for arm64, {len(found)} problems"]))
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())

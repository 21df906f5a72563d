"""Make files and requests that cost a service far more than they cost their sender."""

from __future__ import annotations

import io
import json
import struct
import zlib

import numpy as np
from PIL import Image

EMPTY_SCAN = bytes.fromhex("ffda0008010100010100")  # coefficient 1 of component 1, without data
SIDE = 7000  # 49 megapixels, just below the default limit


def png_file(width: int, height: int, bits: int, kind: int, rows: bytes, *more: bytes) -> bytes:
    """Return a PNG of compressed `rows`, with additional chunks before them."""
    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    data = b"".join((_chunk(b"IHDR", header), *more, _chunk(b"IDAT", rows), _chunk(b"IEND", b"")))
    return b"\x89PNG\r\n\x1a\n" + data


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def jpeg_of_scans(scans: int, side: int = SIDE) -> bytes:
    """Return a progressive JPEG whose scans beyond the first ten are empty."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), "blue").save(out, "JPEG", progressive=True)
    data = out.getvalue()
    return data[:-2] + EMPTY_SCAN * (scans - data.count(b"\xff\xda")) + data[-2:]


def jpeg_of_segments(segments: int) -> bytes:
    """Return a small JPEG with many empty segments."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    return out.getvalue()[:2] + b"\xff\xe5\0\2" * segments + out.getvalue()[2:]


def bmp_of_runs(size: int) -> bytes:
    """Return a BMP of `size` bytes of run lengths, each of a single pixel."""
    out = io.BytesIO()
    Image.new("L", (SIDE, SIDE // 10)).save(out, "BMP")
    head = out.getvalue()[: 14 + 40 + 1024]
    return head[:30] + (1).to_bytes(4, "little") + head[34:] + b"\1\0" * (size // 2)


def png_of_chunks(chunks: int) -> bytes:
    """Return a PNG of one pixel with many empty chunks."""
    return png_file(1, 1, 8, 0, zlib.compress(b"\0\0"), _chunk(b"teSt", b"") * chunks)


def png_with_orientations(count: int) -> bytes:
    """Return a PNG whose EXIF orientation has `count` rational values."""
    exif = b"II*\0" + struct.pack("<IHHHIII", 8, 1, 274, 5, count, 26, 0) + bytes(8 * count)
    return png_file(1, 1, 8, 0, zlib.compress(b"\0\0"), _chunk(b"eXIf", exif))


def png_of_one_row(width: int) -> bytes:
    """Return a PNG of 1 bit a pixel and a single row."""
    return png_file(width, 1, 1, 0, zlib.compress(bytes(1 + -(-width // 8)), 9))


def tiff_of_one_tile(side: int) -> bytes:
    """Return a TIFF of one pixel in a tile of `side` x `side`."""
    rows = zlib.compress(bytes(side * 64)) * max(1, side // 64)
    tags = [(256, 1), (257, 1), (258, 8), (259, 8), (262, 1), (277, 1), (322, side), (323, side)]
    tags += [(324, 8 + 2 + 12 * 10 + 4), (325, len(rows))]
    listed = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + listed + bytes(4) + rows


def webp_lossless(side: int = SIDE) -> bytes:
    """Return a transparent WebP of a few bytes."""
    out = io.BytesIO()
    Image.new("RGBA", (side, side)).save(out, "WEBP", lossless=True, method=0)
    return out.getvalue()


def noise(side: int) -> bytes:
    """Return a JPEG of noise, whose mask has many small regions."""
    out = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 3), np.uint8)
    image = Image.fromarray(values).resize((side, side), Image.Resampling.NEAREST)
    image.save(out, "JPEG", quality=80)
    return out.getvalue()


def cmyk(side: int) -> bytes:
    """Return a JPEG of four colours, which are converted to three."""
    out = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (side // 8, side // 8, 4), np.uint8)
    image = Image.fromarray(values, "CMYK").resize((side, side), Image.Resampling.NEAREST)
    image.save(out, "JPEG", quality=70)
    return out.getvalue()


def form(photo: bytes, count: int) -> bytes:
    """Return a multipart form with the boundary `b` that contains a photo `count` times."""
    head = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    return (head + photo + b"\r\n") * count + b"--b--\r\n"


def json_of_lists(size: int) -> bytes:
    """Return an Open Inference request of about `size` bytes, as many small objects as possible."""
    inputs = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,8,8,3],"data":['
    return inputs + b",".join([b"[]"] * (size // 3)) + b"]}]}"


def tensor_as_json(size: int) -> bytes:
    """Return an Open Inference request of about `size` bytes that declares a wrong shape."""
    data = ",".join(["7"] * (size // 2))
    inputs = {"name": "image", "datatype": "UINT8", "shape": [1, 8, 8, 3]}
    return json.dumps({"inputs": [inputs]}).encode()[:-3] + f', "data": [{data}]}}]}}'.encode()

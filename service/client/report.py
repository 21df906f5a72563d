"""What a finished run shows: class pixels per photo as a table, and contact sheets to look at.

Tables and HTML are written photo by photo, so 100,000 of them take no more
memory than one. The PNG sheet shows an even sample.
"""

from __future__ import annotations

import csv
import html
import importlib
import importlib.util
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from service.client.manifest import Manifest
from service.client.outputs import OutsideError, inside, replacing
from service.client.plain import cell, plain

TABLE = "report.csv"
PARQUET = "report.parquet"
HTML_SHEET = "contact-sheet.html"
PNG_SHEET = "contact-sheet.png"
PICTURES = (".overlay.png", ".overlay.jpg", ".color.png", ".mask.png")  # best first

COLUMNS, ROWS, THUMBNAIL, GAP = 10, 10, 160, 8  # the PNG sheet; sizes in pixels
PARQUET_BATCH = 10_000  # rows in memory at once

STYLE = """\
body { font: 14px system-ui, sans-serif; margin: 1rem; background: #111; color: #ddd }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem }
figure { margin: 0 } img { width: 100%; height: 165px; object-fit: contain; background: #000 }
figcaption { overflow-wrap: anywhere } small { color: #999 }
"""


def write_report(out: Path, manifest: Manifest) -> tuple[list[Path], list[str]]:
    """Writes all that the installed libraries allow: (files, reasons for what is missing)."""
    written, missing = [write_html(out, manifest)], []
    if manifest.classes():
        written.append(write_csv(out, manifest))
        if importlib.util.find_spec("pyarrow") is not None:
            written.append(write_parquet(out, manifest))
    else:
        missing.append(f"no {TABLE}: no class pixels are known, run the inputs again with --report")
    if importlib.util.find_spec("PIL") is None:
        missing.append(
            f"no {PNG_SHEET}: it needs Pillow: pip install pillow (the extra `pictures`)"
        )
    elif (sheet := write_png(out, manifest)) is not None:
        written.append(sheet)
    return written, missing


def columns(manifest: Manifest) -> dict[int, str]:
    """Class id -> column, for every class seen in any photo; equal names get their id."""
    names = {class_id: name for class_id, name, _, _ in manifest.classes()}
    uses = Counter(names.values())
    return {
        class_id: name
        if uses[name] == 1 and name not in {"photo", "pixels"}
        else f"{name}_{class_id}"
        for class_id, name in names.items()
    }


def table(manifest: Manifest) -> Iterator[list[str | int]]:
    """One row per photo whose pixels are known: name, all pixels, pixels of each class."""
    classes = list(columns(manifest))
    for name, _, _ in manifest.done():
        if pixels := manifest.pixels(name):
            yield [name, sum(pixels.values()), *(pixels.get(number, 0) for number in classes)]


def write_csv(out: Path, manifest: Manifest) -> Path:
    """OUT/report.csv: photo, pixels, one column per class."""
    with replacing(out / TABLE) as path, path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(cell, ["photo", "pixels", *columns(manifest).values()]))
        for name, *counts in table(manifest):
            writer.writerow([cell(name), *counts])
    return out / TABLE


def write_parquet(out: Path, manifest: Manifest) -> Path:
    """OUT/report.parquet: the same table; needs pyarrow."""
    arrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    names = ["photo", "pixels", *columns(manifest).values()]
    schema = arrow.schema([(n, arrow.string() if n == "photo" else arrow.int64()) for n in names])
    rows = table(manifest)
    with replacing(out / PARQUET) as path, parquet.ParquetWriter(path, schema) as writer:
        while batch := list(itertools.islice(rows, PARQUET_BATCH)):
            values = [dict(zip(names, row, strict=True)) for row in batch]
            writer.write_table(arrow.Table.from_pylist(values, schema=schema))
    return out / PARQUET


def write_html(out: Path, manifest: Manifest) -> Path:
    """OUT/contact-sheet.html: every photo's picture, loaded as it scrolls into view."""
    title = f"{manifest.counts().get('done', 0)} photos"
    with replacing(out / HTML_SHEET) as path, path.open("w", encoding="utf-8") as stream:
        stream.write(
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        )
        stream.write(f"<style>\n{STYLE}</style>\n<h1>{title}</h1>\n<main>\n")
        names = {class_id: name for class_id, name, _, _ in manifest.classes()}
        for name, picture in _pictures(manifest):
            stream.write(_figure(name, picture, _shares(manifest.pixels(name), names)))
        stream.write("</main></html>\n")
    return out / HTML_SHEET


def write_png(out: Path, manifest: Manifest) -> Path | None:
    """OUT/contact-sheet.png: up to 100 pictures, evenly picked; needs Pillow. None without any."""
    from PIL import Image  # noqa: PLC0415 - only sheets need it

    done = manifest.counts().get("done", 0)
    step = max(1, -(-done // (COLUMNS * ROWS)))
    sample = [picture for _, picture in itertools.islice(_pictures(manifest), 0, None, step)]
    if not sample:
        return None
    cell, rows = THUMBNAIL + GAP, -(-len(sample) // COLUMNS)
    size = (min(COLUMNS, len(sample)) * cell + GAP, rows * cell + GAP)
    sheet = Image.new("RGB", size, (17, 17, 17))
    for index, picture in enumerate(sample):
        try:
            with Image.open(inside(out, picture)) as image:
                image.draft("RGB", (THUMBNAIL, THUMBNAIL))
                thumbnail = image.convert("RGB")
        # Taken away since, broken, or too large to decode: an empty cell says so.
        except (OSError, ValueError, SyntaxError, OutsideError, Image.DecompressionBombError):
            continue
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        row, column = divmod(index, COLUMNS)
        sheet.paste(thumbnail, (GAP + column * cell, GAP + row * cell))
    with replacing(out / PNG_SHEET) as path:
        sheet.save(path, "PNG")
    return out / PNG_SHEET


def _pictures(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Name, and the file below OUT to look at, of every finished photo that has one."""
    for name, stem, outputs in manifest.done():
        picture = next((stem + suffix for suffix in PICTURES if stem + suffix in outputs), None)
        if picture is not None:
            yield name, picture


def _figure(name: str, picture: str, shares: str) -> str:
    link = quote(picture)
    caption = f"{html.escape(plain(name))}<br><small>{html.escape(shares)}</small>"
    image = f'<a href="{link}"><img loading="lazy" src="{link}" alt=""></a>'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"


def _shares(pixels: dict[int, int], names: dict[int, str]) -> str:
    """`background 75 %, cat 25 %`, largest first."""
    total = sum(pixels.values()) or 1
    largest = sorted(pixels.items(), key=lambda item: -item[1])
    return ", ".join(f"{names[number]} {100 * count / total:.0f} %" for number, count in largest)

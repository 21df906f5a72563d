"""Write the report of a run: tables with the class pixels per photo, and contact sheets.

Tables and HTML are written photo by photo, so the memory does not grow with their number.
The PNG sheet shows an even sample.
"""

from __future__ import annotations

import csv
import html
import importlib
import importlib.util
import io
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from urllib.parse import quote

from service.client.charts import charts
from service.client.files import read_photo
from service.client.moments import moment
from service.client.outputs import OutsideError, inside, replacing
from service.client.plain import cell, counted, plain
from service.client.protocol import KINDS
from service.client.records import DONE, Record, Results

TABLE = "report.csv"
PARQUET = "report.parquet"
FIELDS = (
    *("photo", "status", "error", "model", "model_digest", "confidence", "pixels"),
    *("regions", "taken", "latitude", "longitude"),  # by the photo's EXIF data
)
REGIONS = "_regions"  # added to the name of a class
HTML_SHEET = "contact-sheet.html"
PNG_SHEET = "contact-sheet.png"
# Best first.
PICTURES = (*(f".overlay.{suffix}" for suffix in KINDS), ".color.png", ".mask.png")

COLUMNS, ROWS, THUMBNAIL, GAP = 10, 10, 160, 8  # the PNG sheet; sizes in pixels
PARQUET_BATCH = 10_000  # rows in memory at once

Cell = str | int | float | datetime | None

STYLE = """\
body { font: 14px system-ui, sans-serif; margin: 1rem; background: #111; color: #ddd }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(220px, 1fr)); gap: 1rem }
figure { margin: 0 } img { width: 100%; height: 165px; object-fit: contain; background: #000 }
figcaption { overflow-wrap: anywhere } small { color: #999 }
table { border-collapse: collapse; margin-bottom: 2rem }
td, th { padding: 2px 1rem 2px 0; text-align: left }
td.n { text-align: right; font-variant-numeric: tabular-nums }
svg { display: block } rect { fill: #4fd1c0 }
svg text { fill: #999; font: 11px system-ui, sans-serif }
"""


def write_report(
    out: Path, results: Results, read: Callable[[str], bytes] | None = None
) -> tuple[list[Path], list[str]]:
    """Write the reports that installed libraries allow; return files, and reasons for missing ones.

    `read` reads a result file; by default it is below `out`.
    """
    written, missing = [write_html(out, results), write_csv(out, results)], []
    if all(record.classes is None for record in results.records()):
        missing.append("no class pixels are known: run the inputs again with --report")
    if importlib.util.find_spec("pyarrow") is not None:
        written.append(write_parquet(out, results))
    if importlib.util.find_spec("PIL") is None:
        missing.append(
            f"no {PNG_SHEET}: it needs Pillow: pip install pillow (the extra `pictures`)"
        )
    elif (sheet := write_png(out, results, read)) is not None:
        written.append(sheet)
    return written, missing


def columns(results: Results) -> dict[int, str]:
    """Return class id -> column for every class; equal names get their id appended."""
    names = results.class_names()
    of_regions = [f"{name}{REGIONS}" for name in names.values()]
    uses = Counter([*names.values(), *of_regions, *FIELDS])
    return {
        class_id: f"{name}_{class_id}" if uses[name] > 1 or uses[f"{name}{REGIONS}"] > 1 else name
        for class_id, name in names.items()
    }


def heads(results: Results) -> list[str]:
    """Return all columns: FIELDS, then the pixels and the regions of each class."""
    names = list(columns(results).values())
    return [*FIELDS, *names, *(f"{name}{REGIONS}" for name in names)]


def table(results: Results) -> Iterator[list[Cell]]:
    """Yield a row per photo, done or not, with a value for each of `heads`.

    Unknown values are None, an empty cell; 0 means that the class is not in the photo.
    """
    numbers = list(columns(results))
    for record in results.records():
        told: list[Cell] = [
            record.name,
            record.status,
            record.error,
            record.model,
            record.model_digest,
        ]
        found = moment(record.source)
        when_where = [found.taken, found.latitude, found.longitude]
        if record.classes is None:
            yield [*told, None, None, None, *when_where, *[None] * (2 * len(numbers))]
            continue
        pixels = {each.class_id: each.pixels for each in record.classes}
        regions = {each.class_id: each.regions for each in record.classes}
        told += [record.confidence(), sum(pixels.values()), record.regions()]
        counts = [pixels.get(number, 0) for number in numbers]
        # Results of earlier versions have no counts of regions, not even 0 for absent classes.
        absent = None if None in regions.values() else 0
        yield [*told, *when_where, *counts, *(regions.get(number, absent) for number in numbers)]


def write_csv(out: Path, results: Results) -> Path:
    """Write OUT/report.csv."""
    with replacing(out / TABLE) as path, path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(map(cell, heads(results)))
        for row in table(results):
            writer.writerow([cell(value) if isinstance(value, str) else value for value in row])
    return out / TABLE


def write_parquet(out: Path, results: Results) -> Path:
    """Write the same table to OUT/report.parquet; needs pyarrow."""
    arrow = importlib.import_module("pyarrow")
    parquet = importlib.import_module("pyarrow.parquet")
    kinds = dict.fromkeys(("confidence", "latitude", "longitude"), arrow.float64())
    kinds |= dict.fromkeys(("pixels", "regions"), arrow.int64())
    kinds |= {"taken": arrow.timestamp("s")}
    fields = [(name, kinds.get(name, arrow.string())) for name in FIELDS]
    fields += [(name, arrow.int64()) for name in heads(results)[len(FIELDS) :]]
    schema, rows = arrow.schema(fields), table(results)
    with replacing(out / PARQUET) as path, parquet.ParquetWriter(path, schema) as writer:
        while batch := list(itertools.islice(rows, PARQUET_BATCH)):
            values = [dict(zip(schema.names, row, strict=True)) for row in batch]
            writer.write_table(arrow.Table.from_pylist(values, schema=schema))
    return out / PARQUET


def write_html(out: Path, results: Results) -> Path:
    """Write OUT/contact-sheet.html with all pictures, loaded as they scroll into view."""
    title = counted(_done(results), "photo")
    with replacing(out / HTML_SHEET) as path, path.open("w", encoding="utf-8") as stream:
        stream.write(
            f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        )
        stream.write(f"<style>\n{STYLE}</style>\n<h1>{title}</h1>\n")
        stream.write(charts(results) + "<main>\n")
        for record, picture in _pictures(results):
            stream.write(_figure(record.name, picture, _shares(record)))
        stream.write("</main></html>\n")
    return out / HTML_SHEET


def write_png(
    out: Path, results: Results, read: Callable[[str], bytes] | None = None
) -> Path | None:
    """Write OUT/contact-sheet.png with up to 100 pictures; needs Pillow. None without pictures."""
    from PIL import Image  # noqa: PLC0415 - only sheets need it

    read = read or (lambda file: read_photo(inside(out, file)))
    step = max(1, -(-_done(results) // (COLUMNS * ROWS)))
    sample = [picture for _, picture in itertools.islice(_pictures(results), 0, None, step)]
    if not sample:
        return None
    cell, rows = THUMBNAIL + GAP, -(-len(sample) // COLUMNS)
    size = (min(COLUMNS, len(sample)) * cell + GAP, rows * cell + GAP)
    sheet = Image.new("RGB", size, (17, 17, 17))
    for index, picture in enumerate(sample):
        try:
            with Image.open(io.BytesIO(read(picture))) as image:
                image.draft("RGB", (THUMBNAIL, THUMBNAIL))
                thumbnail = image.convert("RGB")
        # Removed, broken, or too large to decode: leave the cell empty.
        except (OSError, ValueError, SyntaxError, OutsideError, Image.DecompressionBombError):
            continue
        thumbnail.thumbnail((THUMBNAIL, THUMBNAIL))
        row, column = divmod(index, COLUMNS)
        sheet.paste(thumbnail, (GAP + column * cell, GAP + row * cell))
    with replacing(out / PNG_SHEET) as path:
        sheet.save(path, "PNG")
    return out / PNG_SHEET


def _done(results: Results) -> int:
    return sum(record.status == DONE for record in results.records())


def _pictures(results: Results) -> Iterator[tuple[Record, str]]:
    """Yield every finished photo with a picture, and the picture's file below OUT."""
    for record in results.records():
        files = (record.stem + suffix for suffix in PICTURES)
        picture = next((file for file in files if file in record.outputs), None)
        if record.status == DONE and picture is not None:
            yield record, picture


def _figure(name: str, picture: str, shares: str) -> str:
    link = quote(picture)
    caption = f"{html.escape(plain(name))}<br><small>{html.escape(shares)}</small>"
    image = f'<a href="{link}"><img loading="lazy" src="{link}" alt=""></a>'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>\n"


def _shares(record: Record) -> str:
    """`background 75 %, cat 25 % in 2 regions`, largest first."""
    classes = sorted(record.classes or (), key=lambda each: -each.pixels)
    total = sum(each.pixels for each in classes) or 1
    return ", ".join(
        f"{each.name} {100 * each.pixels / total:.0f} %"
        + (f" in {each.regions} regions" if (each.regions or 0) > 1 else "")
        for each in classes
    )

"""The figures above the contact sheet: shares of the classes, and photos by date."""

from __future__ import annotations

import html
from collections import Counter, defaultdict
from collections.abc import Sequence

from service.client.moments import moment
from service.client.plain import counted, plain
from service.client.records import DONE, Results

BINS = 10  # of shares: 0 to 10 %, 10 to 20 %, ...
MOST_MONTHS = 60  # in the timeline; a longer time is shown by years
BAR, HEIGHT, LABEL = 14, 28, 16  # pixels


def charts(results: Results) -> str:
    """Return HTML: a histogram of the photo's share for each class, and a timeline."""
    shares: dict[str, list[int]] = defaultdict(lambda: [0] * BINS)
    dates: Counter[str] = Counter()
    photos = 0
    for record in results.records():
        if record.status != DONE:
            continue
        taken = moment(record.source).taken
        if taken is not None:
            dates[f"{taken:%Y-%m}"] += 1
        photos += record.classes is not None
        total = sum(each.pixels for each in record.classes or ()) or 1
        for each in record.classes or ():
            if each.pixels:
                shares[each.name][min(BINS - 1, each.pixels * BINS // total)] += 1
    return _histograms(shares, photos) + _timeline(dates)


def _histograms(shares: dict[str, list[int]], photos: int) -> str:
    """A table with a row for each class, the one in most photos first."""
    if not shares:
        return ""
    rows = []
    for name, bins in sorted(shares.items(), key=lambda item: (-sum(item[1]), item[0])):
        titles = [
            f"{counted(count, 'photo')}: {10 * index} to {10 * index + 10} %"
            for index, count in enumerate(bins)
        ]
        rows.append(
            f'<tr><td>{html.escape(plain(name))}<td class="n">{sum(bins)}'
            f'<td class="n">{100 * sum(bins) / photos:.0f} %<td>{_bars(bins, titles)}\n'
        )
    head = "<tr><th>class<th>photos<th>of all<th>by share of the photo, 0 to 100 %\n"
    return f"<table>{head}{''.join(rows)}</table>\n"


def _timeline(dates: Counter[str]) -> str:
    """Photos by month, or by year for a long time; nothing if no photo has a date."""
    if not dates:
        return ""
    periods = _months(min(dates), max(dates))
    if len(periods) > MOST_MONTHS:
        years: Counter[str] = Counter()
        for month, count in dates.items():
            years[month[:4]] += count
        dates, periods = (
            years,
            [f"{year:04}" for year in range(int(min(years)), int(max(years)) + 1)],
        )
    counts = [dates[period] for period in periods]
    titles = [
        f"{period}: {counted(count, 'photo')}"
        for period, count in zip(periods, counts, strict=True)
    ]
    ends = (periods[0], periods[-1])
    return f"<h2>Photos by date</h2>\n{_bars(counts, titles, ends)}<p></p>\n"


def _months(first: str, last: str) -> list[str]:
    """All months from `2024-11` to `2025-02`."""
    begin, end = (int(month[:4]) * 12 + int(month[5:]) - 1 for month in (first, last))
    return [f"{month // 12:04}-{month % 12 + 1:02}" for month in range(begin, end + 1)]


def _bars(counts: Sequence[int], titles: Sequence[str], ends: tuple[str, ...] = ()) -> str:
    """An SVG with a bar for each count, and text below the first and the last one."""
    width, most = len(counts) * BAR, max(counts) or 1
    wide = max(width, 120 if ends else 0)
    bars = []
    for index, (count, title) in enumerate(zip(counts, titles, strict=True)):
        tall = max(1, round(HEIGHT * count / most)) if count else 0
        bars.append(
            f'<rect x="{index * BAR}" y="{HEIGHT - tall}" width="{BAR - 2}" height="{tall}">'
            f"<title>{html.escape(title)}</title></rect>"
        )
    texts = ""
    if ends:
        texts = f'<text x="0" y="{HEIGHT + 12}">{ends[0]}</text>'
        if ends[0] != ends[1]:
            texts += f'<text x="{wide}" y="{HEIGHT + 12}" text-anchor="end">{ends[1]}</text>'
    high = HEIGHT + (LABEL if ends else 0)
    return f'<svg width="{wide}" height="{high}" role="img">{"".join(bars)}{texts}</svg>'

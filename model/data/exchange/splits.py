"""Divide photos into splits, keeping the photos of a group together."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from model.data.pairs import DatasetError

NUMBERED = re.compile(r"^(.*?)[-_ ]?\d+$")  # frame_0012
FRAMES = 5  # photos of one name with numbers that look like a video


def groups(photos: Sequence[str], by: str) -> list[str]:
    """The group of each photo, given by its path: `none`, `folder`, or a regular expression.

    The group is what the expression's first parentheses match, or all of the match; a photo
    that it does not match is a group of its own. Raises DatasetError for a bad expression.
    """
    if by == "none":
        return list(photos)
    if by == "folder":
        return [str(PurePosixPath(photo).parent) for photo in photos]
    try:
        pattern = re.compile(by)
    except re.error as error:
        raise DatasetError(f"--group-by {by}: not a regular expression: {error}") from None
    found = [pattern.search(photo) for photo in photos]
    return [
        photo if match is None else match[1 if pattern.groups else 0] or photo
        for photo, match in zip(photos, found, strict=True)
    ]


def divide(group_of: Sequence[str], shares: Mapping[str, float], seed: int) -> list[str]:
    """The split of each photo, by its group.

    Groups come in random order, the same for a seed; each goes to the split that lacks most of
    its share. Raises DatasetError if a split stays empty.
    """
    sizes: dict[str, int] = {}
    for group in group_of:
        sizes[group] = sizes.get(group, 0) + 1
    order = sorted(sizes)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -sizes[group])  # large ones first: small ones even it out
    have = dict.fromkeys(shares, 0)
    chosen: dict[str, str] = {}
    for group in order:
        split = max(have, key=lambda name: shares[name] * len(group_of) - have[name])
        chosen[group] = split
        have[split] += sizes[group]
    if empty := [name for name, count in have.items() if not count]:
        raise DatasetError(
            f"{' and '.join(empty)} would be empty: {len(sizes)} groups of photos are too few for "
            f"--splits {','.join(f'{name}={share:g}' for name, share in shares.items())}"
        )
    return [chosen[group] for group in group_of]


def sequences(photos: Sequence[str]) -> list[str]:
    """Return names that several numbered photos share; they may be frames of a video."""
    counts: dict[str, int] = {}
    for photo in photos:
        match = NUMBERED.match(PurePosixPath(photo).stem)
        if match and match[1]:
            counts[match[1]] = counts.get(match[1], 0) + 1
    return sorted(name for name, count in counts.items() if count >= FRAMES)

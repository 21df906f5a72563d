"""Choose the classes of a data set from a tool's labels: merge, leave out, mark as void."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from model.data.pairs import VOID, DatasetError

BACKGROUND = "background"
# Labels that tools use for what has no class: LabelMe's own two, and the usual ones.
AS_BACKGROUND = {"_background_": BACKGROUND}
AS_VOID = ("void", "ignore", "__ignore__")
Rest = Literal["background", "void"]


@dataclass(frozen=True)
class Choice:
    """The classes, and the id of each label of the tool that is drawn."""

    classes: tuple[str, ...]
    ids: dict[str, int]
    left_out: tuple[str, ...]
    fill: int  # the id of pixels without a label


def choose(
    labels: Sequence[str],
    *,
    chosen: Sequence[str] = (),
    mapping: Mapping[str, str],
    void: Sequence[str] = AS_VOID,
    unlabelled: Rest = "background",
    others: Literal["unlabelled", "void"] = "unlabelled",
) -> Choice:
    """Map labels by `mapping`, then to the classes `chosen`; without them, all are classes.

    `unlabelled` tells what pixels without a label are. Labels that are not chosen are not drawn,
    so that their pixels are what lies below, or void if `others` says so. Raises
    DatasetError for names that do not occur.
    """
    _expect(labels, mapping, chosen)
    renamed = {label: mapping.get(label, AS_BACKGROUND.get(label, label)) for label in labels}
    is_void = {label for label, name in renamed.items() if name in void and name not in chosen}
    names = [*chosen] or [
        *dict.fromkeys(name for label, name in renamed.items() if label not in is_void)
    ]
    if unlabelled == "background" or (BACKGROUND in names and not chosen):
        names = [BACKGROUND, *(name for name in names if name != BACKGROUND)]
    if len(names) > VOID - 1:
        raise DatasetError(f"{len(names)} classes: at most {VOID - 1} fit into a mask")
    number = {name: index for index, name in enumerate(names)}
    ids = {label: number[name] for label, name in renamed.items() if name in number}
    ids |= dict.fromkeys(is_void, VOID)
    left_out = tuple(label for label in labels if label not in ids)
    if others == "void":
        ids |= dict.fromkeys(left_out, VOID)
    fill = number.get(BACKGROUND, VOID) if unlabelled == "background" else VOID
    return Choice(tuple(names), ids, left_out, fill)


def _expect(labels: Sequence[str], mapping: Mapping[str, str], chosen: Sequence[str]) -> None:
    """Raise DatasetError for names that do not occur, which are misspelt."""
    known = {*labels, *mapping.values(), BACKGROUND}
    for option, names in (("--map", [*mapping]), ("--classes", [*chosen])):
        allowed = {*labels} if option == "--map" else known
        if missing := [name for name in names if name not in allowed]:
            raise DatasetError(
                f"{option} {', '.join(missing)}: no such label; there are {', '.join(labels)}"
            )
    if len({*chosen}) < len(chosen):
        raise DatasetError(f"--classes {','.join(chosen)} names a class twice")

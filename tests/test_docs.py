"""The documentation against the repository: links, paths, commands and tables are right."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import service.errors
from model.weights.catalogue import LEFT_OUT, WEIGHTS
from postprocess.results.outputs import OUTPUTS
from service.errors import ServiceError
from service.http.query import SegmentQuery
from service.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "docker/*.md", "model/bundled/*.md")
    for path in ROOT.glob(pattern)
    if path.name != "CHANGELOG.md"  # which describes the past
)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
MODULE = re.compile(r"python\s+-m\s+((?:model|export|service)[\w.]*)")
PATH = re.compile(
    r"`((?:annotations|pixels|postprocess|model|export|service|docker|docs|tests)/[\w./-]+)`"
)


def prose(page: Path) -> str:
    """A page without its fenced blocks, where brackets and paths are examples."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    plain = (re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", text) for text in HEADING.findall(prose(page)))
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in plain}


def table(page: Path, heading: str) -> Iterator[list[str]]:
    """The rows of the tables under a heading, as lists of cells."""
    text = page.read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.split(f"{heading}\n", 1)[1], flags=re.MULTILINE)[0]
    for line in section.splitlines():
        if line.startswith("| `") or re.match(r"\| \d", line):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def code(cell: str) -> set[str]:
    """Return the texts in code style in a cell."""
    return set(re.findall(r"`([^`]+)`", cell))


@each_page
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page)):
        if link.startswith(("http:", "https:", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@each_page
def test_paths_named_in_the_text_exist(page: Path) -> None:
    named = [path for path in PATH.findall(prose(page)) if "NAME" not in path]
    assert [path for path in named if not (ROOT / path).exists()] == []


@each_page
def test_commands_name_modules_that_can_be_run(page: Path) -> None:
    named = {name.rstrip(".") for name in MODULE.findall(page.read_text(encoding="utf-8"))}
    missing = [
        name
        for name in named
        if not (ROOT / f"{name.replace('.', '/')}.py").exists()
        and not (ROOT / name.replace(".", "/") / "__main__.py").exists()
    ]
    assert missing == []


@each_page
def test_make_targets_named_in_code_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, re.MULTILINE))
    named = set(
        re.findall(r"(?:`|^\$ )make ([\w-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
    )
    assert named <= targets


@each_page
def test_console_scripts_named_in_code_exist(page: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set(re.findall(r"`(deeplab-[\w-]+)", page.read_text(encoding="utf-8")))
    assert named <= set(project["scripts"])


def test_constants_named_in_contributing_exist() -> None:
    """The guides to common changes name the tables to extend, such as `BACKBONES`."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z][A-Z_]{4,})`", text))
    folders = ("annotations", "pixels", "postprocess", "model", "export", "service")
    sources = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    defined = {
        name
        for path in sources
        for name in re.findall(r"^([A-Z_]+)\b.*=", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert len(named) > 5
    assert named <= defined


def test_every_page_is_in_the_index() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {
        (index.parent / link.partition("#")[0]).resolve() for link in LINK.findall(prose(index))
    }
    pages = {page for page in PAGES if page.parent == index.parent} - {index}
    assert {page.name for page in pages - linked} == set()


def test_operations_lists_every_setting_and_no_other() -> None:
    listed: set[str] = set()
    for flags, *_ in table(ROOT / "docs" / "operations.md", "## Settings"):
        listed |= code(flags)
    assert listed == {f"--{name.replace('_', '-')}" for name in Settings.model_fields}


def test_published_weights_lists_every_name_and_no_other() -> None:
    """Those that are converted with their figures, and those that are left out with the reason."""
    page = ROOT / "docs" / "published-weights.md"
    rows = {row[0].strip("`"): row[1:] for row in table(page, "### Names")}
    assert list(rows) == list(WEIGHTS)
    for name, (network, trained_on, miou, _size, _digest, licence) in rows.items():
        ours = WEIGHTS[name]
        assert (network, trained_on) == (ours.network, ours.trained_on)
        assert (miou, licence) == (ours.miou or "-", ours.licence)
    left_out = {name.strip("`"): reason for name, reason in table(page, "### Left out")}
    assert left_out == LEFT_OUT


def test_the_api_page_lists_every_query_parameter_output_and_error() -> None:
    page = ROOT / "docs" / "api.md"
    asked = {name for row in table(page, "## POST /segment") for name in code(row[0])}
    assert asked - {"X-Request-Timeout-Ms", "X-Request-ID", "Accept"} >= set(
        SegmentQuery.model_fields
    )
    assert {name for row in table(page, "## Outputs") for name in code(row[0])} == set(OUTPUTS)
    errors = {
        (int(status), name)
        for status, names, *_ in table(page, "## Errors")
        for name in code(names)
    }
    of_the_framework = {(404, "not-found"), (405, "method-not-allowed")}
    assert errors - of_the_framework == {
        (error.status, error.code)
        for error in vars(service.errors).values()
        if isinstance(error, type) and issubclass(error, ServiceError)
    }
    assert errors >= of_the_framework

"""What an installation has: its commands, its extras and its data files."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from service import scripts
from tests.conftest import is_wholly_slow

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMMANDS: dict[str, str] = PROJECT["project"]["scripts"]
PACKAGES = ("annotations/", "pixels/", "postprocess/", "model/", "export/", "service/")


# One interpreter for all of them: each would load torch anew. {name: [exit code, output]}
HELP = """
import contextlib, io, json, sys
from importlib import import_module
results = {}
for name, target in json.loads(sys.argv[1]).items():
    sys.argv = [name, "--help"]
    module, _, function = target.partition(":")
    command = getattr(import_module(module), function)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            code = command()
        except SystemExit as stopped:
            code = stopped.code
    results[name] = [code, out.getvalue()]
print(json.dumps(results))
"""


@pytest.mark.slow
def test_every_command_prints_its_help() -> None:
    """Each is called as the script that pip writes calls it: without arguments."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(COMMANDS)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    results = json.loads(done.stdout)
    assert results.keys() == COMMANDS.keys()
    for name, (code, output) in results.items():
        assert not code, name
        assert "usage:" in output.lower(), name


@pytest.mark.slow
def test_every_argument_has_a_help_text() -> None:
    """This includes commands without a script."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in {"add_argument", "add_parser"}
        and "help" not in {each.arg for each in node.keywords}
    ]
    assert silent == []


@pytest.mark.parametrize(("name", "script"), scripts.SCRIPTS.items())
def test_every_command_names_a_function(name: str, script: scripts.Script) -> None:
    """The same check without importing the module, which is quick enough for every run."""
    path = ROOT.joinpath(*script.module.split(".")).with_suffix(".py")
    assert script.function in defined(path)
    assert COMMANDS[f"deeplab-{name}"] == f"service.scripts:{name.replace('-', '_')}"


def defined(path: Path) -> set[str]:
    """The names that a module gives to functions and values."""
    body = ast.parse(path.read_text(encoding="utf-8")).body
    functions = {node.name for node in body if isinstance(node, ast.FunctionDef)}
    targets = [each for node in body if isinstance(node, ast.Assign) for each in node.targets]
    return functions | {each.id for each in targets if isinstance(each, ast.Name)}


def test_commands_that_run_a_network_keep_freed_memory() -> None:
    """Without that a CPU is slower, because of page faults: model/memory.py."""
    run_none = {"data", "convert", "start", "weights", "average", "prior", "complexity"}
    for name, script in scripts.SCRIPTS.items():
        if script.module.startswith("model."):
            assert script.function == ("main" if name in run_none else "script"), name
            shim = ROOT / "model" / f"{name}.py"
            if shim.exists():
                assert f"SystemExit({script.function}())" in shim.read_text(encoding="utf-8")


def test_every_command_has_a_script() -> None:
    assert {f"deeplab-{name}" for name in scripts.SCRIPTS} == set(COMMANDS)


@pytest.mark.parametrize(("name", "extra"), [("serve", "cpu"), ("train", "train")])
def test_a_command_without_its_extra_names_it(name: str, extra: str) -> None:
    """Only the plain installation's libraries can be found."""
    code = (
        "import sys, service.scripts as s; "
        "sys.modules.update(dict.fromkeys(('pydantic', 'torch', 'numpy', 'fastapi'))); "
        f"sys.exit(s.{name}())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: deeplab-{name} needs ")
    assert f"pip install '.[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_library_that_is_loaded_after_the_command_line_is_named_too() -> None:
    """`model.train` reads its options before it loads PyTorch."""
    code = (
        "import sys, service.scripts as s; sys.modules['torch'] = None; "
        "sys.argv[1:] = ['efficientnet-lite0-voc', '--data', '.', '--out', 'x']; "
        "sys.exit(s.train())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "error: deeplab-train needs torch" in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_are_one_family() -> None:
    """A bare `service` would hide a system program of Debian."""
    assert all(name.startswith("deeplab-") for name in COMMANDS)


def test_the_plain_installation_is_the_client_alone() -> None:
    (requirement,) = PROJECT["project"]["dependencies"]
    assert requirement.startswith("httpx")


@pytest.fixture(scope="module")
def tracked() -> set[str]:
    """The files of this checkout that are under version control."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip(f"needs a git checkout: {listed.stderr.decode().strip()}")
    names = listed.stdout.decode().split("\0")[:-1]
    return {name for name in names if (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tracked: set[str], tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The files in the wheel that `pip install .` makes."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in tracked:  # a copy, since a build leaves files beside its sources
        if "/" not in name or name.startswith(PACKAGES):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    code = "import sys; from setuptools import build_meta; print(build_meta.build_wheel('.'))"
    built = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    with zipfile.ZipFile(folder / built.stdout.split()[-1]) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_the_wheel_has_every_file_of_the_packages(tracked: set[str], wheel: set[str]) -> None:
    """Code, presets, the page, sample photos and bundled models, and nothing else."""
    expected = {name for name in tracked if name.startswith(PACKAGES)}
    assert expected - wheel == set()
    assert {name.partition("/")[0] for name in wheel - expected} == {"deeplab-0.1.0.dist-info"}


def test_every_folder_of_tests_takes_part_in_test_fast() -> None:
    """`make test-fast` leaves out what is marked slow, a test or a whole file."""
    files = list((ROOT / "tests").rglob("test_*.py"))
    left_out = {path for path in files if is_wholly_slow(path)}
    assert left_out
    for folder in {path.parent for path in files}:
        assert set(folder.glob("test_*.py")) - left_out, folder

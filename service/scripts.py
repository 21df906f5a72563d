"""The console scripts `deeplab-NAME`: each loads its module, or says which extra it needs.

The plain installation has the batch client's libraries alone, but pip writes every script.
Modules of `model` and `export` are named here as text: the service imports nothing of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import NamedTuple


class Script(NamedTuple):
    """The function that a script runs, and the extras that install its libraries."""

    module: str
    function: str = "main"
    extras: str = "train"


SCRIPTS = {
    "client": Script("service.client.cli", extras="pictures"),
    "serve": Script("service.__main__", extras="cpu"),
    "label-studio": Script("service.label_tools.label_studio", extras="cpu"),
    "demo": Script("service.demo", extras="cpu"),
    "ray-batch": Script("service.cluster.batch", extras="ray,cpu"),
    "ray-serve": Script("service.cluster.serve", extras="ray,cpu"),
    "train": Script("model.train.__main__", "script"),
    "pretrain": Script("model.pretrain", "script"),
    "evaluate": Script("model.evaluate.__main__", "script"),
    "predict": Script("model.evaluate.predict", "script"),
    "report": Script("model.evaluate.report", "script"),
    "data": Script("model.data.__main__"),
    "convert": Script("model.convert.__main__"),
    "audit": Script("model.curate.audit", "script"),
    "rank": Script("model.curate.rank", "script"),
    "start": Script("model.start.command", extras="train,cpu"),
    "weights": Script("model.weights.__main__"),
    "average": Script("model.finish.average"),
    "prior": Script("model.finish.prior"),
    "temperature": Script("model.finish.temperature", "script"),
    "recalibrate": Script("model.finish.recalibrate", "script"),
    "complexity": Script("model.paper.complexity"),
    "studies": Script("model.paper.studies.__main__", "script"),
    "reproduce": Script("model.paper.reproduce.__main__", "script"),
    "export": Script("export.__main__", extras="train,cpu"),
    "calibrate": Script("export.calibrate", extras="train,cpu"),
    "export-evaluate": Script("export.evaluate", extras="train,cpu"),
    "export-matrix": Script("export.matrix", extras="train,cpu"),
    "adopt": Script("export.adopt", extras="train,cpu"),
    "describe": Script("export.describe", extras="train,cpu"),
}
PACKAGES = {"postprocess", "model", "export", "service"}


def run(name: str) -> int:
    """Run the script `deeplab-NAME`; 2 when a library of its extra is not installed."""
    script = SCRIPTS[name]
    try:
        command = getattr(import_module(script.module), script.function)
        return int(command())  # loads more after the command line is read
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in PACKAGES:
            raise
        print(
            f"error: deeplab-{name} needs {missing}, which is not installed: "
            f"in the checkout, run pip install '.[{script.extras}]'",
            file=sys.stderr,
        )
        return 2


def __getattr__(attribute: str) -> Callable[[], int]:
    """Give `export_evaluate` and the others, which pip's scripts import by name."""
    name = attribute.replace("_", "-")
    if name not in SCRIPTS:
        raise AttributeError(attribute)
    return partial(run, name)

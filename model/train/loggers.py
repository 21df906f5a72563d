"""Send curves and overlays to MLflow (`--mlflow`) or Weights & Biases (`--wandb`).

Both are set up by their own environment variables: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME,
WANDB_PROJECT, WANDB_MODE=offline and so on. The id of a run is kept in its folder, so that
`--resume` continues it there as well. A server that does not answer does not end the training:
`log.jsonl` has every line.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from model.checkpoint import Card
from model.data.dataset import Dataset
from model.network.deeplab import DeepLabV3Plus
from model.train.board import Board, numbers, pictures
from model.train.recipe import Recipe, RecipeError
from model.train.run import flat

log = logging.getLogger("model.train")

PROJECT = "deeplab"  # experiment or project, where the environment names none
LONGEST_VALUE = 500  # characters of a recipe's value; MLflow refuses longer ones


class Boards:
    """Several boards as one."""

    def __init__(self, boards: list[Board]) -> None:
        self.boards = boards

    def scalars(self, iteration: int, values: dict[str, Any]) -> None:
        """Send a log line to all of them."""
        for board in self.boards:
            board.scalars(iteration, values)

    def overlays(self, iteration: int, net: DeepLabV3Plus, dataset: Dataset, card: Card) -> None:
        """Send overlays to all of them."""
        for board in self.boards:
            board.overlays(iteration, net, dataset, card)

    def close(self) -> None:
        """Close all of them."""
        for board in self.boards:
            board.close()


class Forgiving:
    """Calls a server that may be down; logs once when it fails, and once when it works again."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.away = False

    def attempt(self, call: Callable[..., object], *arguments: object, **options: object) -> None:
        """Make a call; a failure is logged and does not end the training."""
        try:
            call(*arguments, **options)
        except Exception as error:  # of a client, a network or a server: none may end a training
            if not self.away:
                log.warning(
                    "%s does not accept this line; the training continues: %s",
                    self.name,
                    str(error).splitlines()[0] if str(error) else type(error).__name__,
                )
            self.away = True
            return
        if self.away:
            log.info("%s accepts lines again", self.name)
        self.away = False


def remembered(path: Path, make: Callable[[], str]) -> str:
    """The id that a run has on a server: the one in its folder, or a new one."""
    if path.is_file():
        return path.read_text(encoding="utf-8").strip()
    made = make()
    path.write_text(f"{made}\n", encoding="utf-8")
    return made


def settings(config: Recipe) -> dict[str, str]:
    """The recipe as dotted keys and short texts."""
    table = flat(config.model_dump(mode="json"))
    return {key: str(value)[:LONGEST_VALUE] for key, value in table}


class MLflow:
    """Writes to the tracking server that MLFLOW_TRACKING_URI names."""

    def __init__(self, directory: Path, config: Recipe) -> None:
        """Raises RecipeError where the library is missing or the server refuses the run."""
        try:
            from mlflow import MlflowClient  # noqa: PLC0415 - an extra, asked for
        except ImportError as error:
            raise RecipeError(f"--mlflow: {error}; pip install 'deeplab[mlflow]'") from error
        self.forgiving = Forgiving("MLflow")
        try:
            self.client = MlflowClient()
            self.run = remembered(directory / "mlflow.txt", lambda: self._begin(directory, config))
        except Exception as error:  # of a client, a network or a server
            raise RecipeError(
                f"--mlflow: {str(error).splitlines()[0]}; set MLFLOW_TRACKING_URI to a server"
            ) from error

    def _begin(self, directory: Path, config: Recipe) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        found = self.client.get_experiment_by_name(name)
        experiment = self.client.create_experiment(name) if found is None else found.experiment_id
        run = self.client.create_run(experiment, run_name=directory.resolve().name)
        for key, value in settings(config).items():
            self.client.log_param(run.info.run_id, key, value)
        return str(run.info.run_id)

    def scalars(self, iteration: int, values: dict[str, Any]) -> None:
        """Write the numbers of a log line."""
        for key, number in numbers(values).items():
            name = re.sub(r"[^\w\-. :/]", "_", key)  # what MLflow allows
            self.forgiving.attempt(self.client.log_metric, self.run, name, number, step=iteration)

    def overlays(self, iteration: int, net: DeepLabV3Plus, dataset: Dataset, card: Card) -> None:
        """Keep the pictures as artifacts."""
        for name, both in pictures(net, dataset, card):
            file = f"overlays/{name}/{iteration:06}.png"
            self.forgiving.attempt(self.client.log_image, self.run, both, file)

    def close(self) -> None:
        """End the run there; resuming opens it again."""
        self.forgiving.attempt(lambda: self.client.set_terminated(self.run))


class WandB:
    """Writes to Weights & Biases, or with WANDB_MODE=offline below `directory/wandb`."""

    def __init__(self, directory: Path, config: Recipe) -> None:
        """Raises RecipeError where the library or a login is missing."""
        try:
            import wandb  # noqa: PLC0415 - an extra, asked for
        except ImportError as error:
            raise RecipeError(f"--wandb: {error}; pip install 'deeplab[wandb]'") from error
        self.forgiving = Forgiving("Weights & Biases")
        self.picture = wandb.Image
        directory.mkdir(parents=True, exist_ok=True)
        try:
            self.run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT),
                name=directory.resolve().name,
                dir=directory,
                id=remembered(directory / "wandb.txt", lambda: secrets.token_hex(4)),
                resume="allow",
                config=settings(config),
            )
        except Exception as error:  # of a client, a network or a server
            raise RecipeError(
                f"--wandb: {str(error).splitlines()[0]}; run `wandb login`, or set "
                "WANDB_MODE=offline and send the run later by `wandb sync`"
            ) from error

    def scalars(self, iteration: int, values: dict[str, Any]) -> None:
        """Write the numbers of a log line."""
        self.forgiving.attempt(lambda: self.run.log(numbers(values), step=iteration))

    def overlays(self, iteration: int, net: DeepLabV3Plus, dataset: Dataset, card: Card) -> None:
        """Show the pictures beside the curves."""
        shown = {name: self.picture(both) for name, both in pictures(net, dataset, card)}
        self.forgiving.attempt(lambda: self.run.log(shown, step=iteration))

    def close(self) -> None:
        """Send what is still in memory."""
        self.forgiving.attempt(self.run.finish)

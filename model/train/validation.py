"""Measure mIoU during training, keep the best weights, and stop a run that no longer improves.

Single scale and photos shrunk to the crop size if they are larger, as the service does and by
default `model.evaluate`; with the averaged weights if the run averages. The processes divide the
photos among them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from pathlib import Path

from model import checkpoint
from model.checkpoint import Card
from model.data.dataset import Dataset, read_source
from model.evaluate.metrics import Confusion
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import served_map
from model.train.distributed import World
from model.train.recipe import Recipe
from model.train.run import Run, RunFolder, expect_finite

log = logging.getLogger("model.train")

BEST = "best"  # name of the checkpoint


@dataclass(frozen=True)
class Validation:
    """The split to validate on, how often, and when to stop."""

    dataset: Dataset
    config: Recipe
    folder: RunFolder

    def after(self, run: Run) -> bool:
        """Validate the network if it is due; returns whether to end the run."""
        if run.iteration % self.config.validate_every:
            return False
        self.folder.save(run)  # in case the validation fails
        world = self.folder.world
        confusion = judge(network(run, self.config, world), self.dataset, world)
        miou = confusion.miou()
        by_class = zip(self.dataset.classes, confusion.iou().tolist(), strict=True)
        iou = {name: round(value, 4) for name, value in by_class if not math.isnan(value)}
        self.folder.write(run.iteration, miou=round(miou, 6), iou=iou)
        if miou > run.best.get("miou", -1.0):
            run.best = {"miou": miou, "iteration": run.iteration, "stale": 0}
            self._keep(run)
        else:
            run.best["stale"] += 1
        run.best["judged"] = run.iteration
        return self.is_over(run)

    def is_owed(self, run: Run) -> bool:
        """Whether a run was saved before its validation and stopped during it."""
        due = run.iteration > 0 and run.iteration % self.config.validate_every == 0
        return due and run.best.get("judged", 0) < run.iteration

    def is_over(self, run: Run) -> bool:
        """Whether the last `patience` validations brought no gain."""
        over = bool(0 < self.config.patience <= run.best.get("stale", 0))
        if over:
            log.info(
                "no gain in %d validations: stopped at iteration %d; best is %s of iteration %d",
                self.config.patience,
                run.iteration,
                f"mIoU {run.best['miou']:.4f}",
                run.best["iteration"],
            )
        return over

    def _keep(self, run: Run) -> None:
        metrics = {
            "dataset": self.dataset.name,
            "split": self.dataset.split,
            "miou": round(run.best["miou"], 6),
            "iteration": run.iteration,
        }
        card = describe(self.config, self.dataset, metrics)
        keep(run, self.folder, BEST, card)


def network(run: Run, config: Recipe, world: World) -> DeepLabV3Plus:
    """A copy of the run's network with the weights it would keep, in eval mode."""
    net = DeepLabV3Plus(config.model)
    net.load_state_dict(run.weights())
    return net.to(world.device).eval()


def judge(net: DeepLabV3Plus, dataset: Dataset, world: World) -> Confusion:
    """The confusion matrix over a whole split; each process predicts its share of the photos."""
    confusion = Confusion(len(dataset.classes))

    def add_share() -> None:
        for pair in dataset.pairs[world.rank :: world.size]:
            photo, truth = read_source(dataset, pair)
            confusion.add(truth, served_map(net, photo))

    world.together(add_share)
    confusion.counts = world.total(confusion.counts)
    return confusion


def describe(config: Recipe, dataset: Dataset, metrics: dict[str, object] | None = None) -> Card:
    """The card of a checkpoint trained by `config` on `dataset`."""
    return Card(
        model=config.model,
        classes=dataset.classes,
        palette=dataset.palette,
        training=config.model_dump(mode="json", exclude={"model"}),
        metrics=metrics or {},
        source=f"trained by model.train on {config.dataset} {config.split}",
    )


def keep(run: Run, folder: RunFolder, name: str, card: Card) -> Path:
    """Write the run's weights as a checkpoint; returns its path.

    Raises TrainingError, and keeps an existing file, if a weight is not finite.
    """
    expect_finite(run, folder.path)
    path, _ = checkpoint.paths(folder.path / name)
    folder.world.from_main(lambda: checkpoint.save(path, run.weights(), card))
    return path

"""Measure batch norm's statistics anew on whole photos: `python -m model.recalibrate CKPT -o OUT`.

Training sees crops at random scales, evaluation whole photos at their own size, padded to
the crop size. The maps' means and variances differ between the two, and a network judged
with those of the crops misses what it knows (Touvron et al. 2019 found the same of
classifiers). This lays training photos out as evaluation does and replaces the running
statistics by those of all of them; no weight is changed. Judge the result.

Photos go through in batches, each normalised by its own statistics: the larger a batch,
the more it is like all photos. 32 of 513 x 513 take the bundled network some 7 GB.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from tqdm import tqdm

from model import arguments, checkpoint, memory
from model.checkpoint import CheckpointError
from model.data.dataset import Dataset, DatasetError, find, read_pair
from model.data.loader import balanced_weights, first_readable, pixel_counts
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import pad
from model.network.layers import batch_norms


def drawn(dataset: Dataset, sampling: str, count: int, seed: int) -> NDArray[np.int64]:
    """Indices (count,) of photos: balanced ones, or uniformly each once before any comes again."""
    rng = np.random.default_rng(seed)
    total = len(dataset.pairs)
    if sampling == "balanced":
        weights = balanced_weights(pixel_counts(dataset))
        return rng.choice(total, count, p=weights / weights.sum())
    rounds = [rng.permutation(total) for _ in range(-(-count // total))]
    return np.concatenate(rounds)[:count]


def whole(dataset: Dataset, order: NDArray[np.int64], net: DeepLabV3Plus) -> Iterator[Tensor]:
    """Photos of these indices as evaluation sees them, (1, 3, H, W), shrunk if they are larger.

    Raises DatasetError where one photo after the other is damaged.
    """
    height, width = net.config.crop_size
    for position in range(len(order)):
        (photo, _), _ = first_readable(
            position, lambda at: read_pair(dataset, dataset.pairs[order[at % len(order)]])
        )
        photo.thumbnail((width, height))
        x = torch.from_numpy(np.array(photo)).permute(2, 0, 1)[None]
        yield pad(x.to(net.logits.weight), net, net.config.crop_size)


class Pooled:
    """Mean and variance of all that a batch norm sees, over batches of one size.

    The mean of the batches' variances, which training keeps, leaves out how their means
    differ; the variance of the whole is the sum of both (Wu and Johnson 2021, "Rethinking
    'Batch' in BatchNorm", section 3).
    """

    def __init__(self, norm: _BatchNorm) -> None:
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("this batch norm keeps no statistics")
        self.mean, self.variance = norm.running_mean, norm.running_var
        self.means, self.squares, self.variances = torch.zeros(
            3, len(self.mean), dtype=torch.float64, device=self.mean.device
        )
        norm.reset_running_stats()
        norm.momentum = 1.0  # after a batch, the running statistics are those of it alone
        norm.train()
        self.hook = norm.register_forward_hook(self.add)

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        """Count a batch in, by what the layer has just kept of it: its forward hook."""
        values = inputs[0].numel() // len(self.mean)  # of each channel
        mean = self.mean.double()
        self.means += mean
        self.squares += mean.square()
        self.variances += self.variance.double() * ((values - 1) / values)  # was unbiased

    def finish(self, batches: int) -> None:
        """Write the statistics of the whole, so many batches, into the layer."""
        self.hook.remove()
        mean = self.means / batches
        between = (self.squares / batches - mean.square()).clamp(min=0)
        self.mean.copy_(mean)
        self.variance.copy_(self.variances / batches + between)


@torch.no_grad()
def recalibrate(net: DeepLabV3Plus, photos: Iterator[Tensor], count: int, batch: int) -> None:
    """Replace the running statistics by those of `count` photos, in place."""
    pooled = [Pooled(norm) for norm in batch_norms(net)]
    with tqdm(total=count, unit="photo", disable=not sys.stderr.isatty()) as bar:
        for _ in range(count // batch):
            net(torch.cat([next(photos) for _ in range(batch)]))
            bar.update(batch)
    for statistics in pooled:
        statistics.finish(count // batch)
    net.eval()


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.recalibrate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.recalibrate runs/light/model -o runs/whole/model "
        "--data DATA --photos 1600",
    )
    arguments.add_remade(p)
    p.add_argument("--photos", type=arguments.positive, default=1600, help="default: 1600")
    p.add_argument("--batch", type=arguments.positive, default=32, help="photos at once (32)")
    p.add_argument("--seed", type=int, default=0)
    arguments.add_device(p)
    return p


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.batch < 2 or args.photos % args.batch:
        p.error(f"--batch {args.batch}: give at least 2, and --photos a multiple of it")
    try:
        net = checkpoint.load_on(args.device, args.checkpoint)
        card = checkpoint.read_card(args.checkpoint)
        dataset = find(args.dataset, args.data, args.split)
        order = drawn(dataset, args.sampling, args.photos, args.seed)
        recalibrate(net, whole(dataset, order, net), args.photos, args.batch)
        note = {key: getattr(args, key) for key in ("split", "sampling", "photos", "batch", "seed")}
        training = card.training | {"recalibrated": note}
        card = card.model_copy(update={"training": training, "metrics": {}})
        path = checkpoint.save(args.out, net.state_dict(), card)
    except (CheckpointError, DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {path}")
    return 0


def script() -> int:
    """The console script: `main` in a process that keeps freed memory."""
    memory.keep_freed_on_a_cpu()
    return main()

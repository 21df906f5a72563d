"""Measure batch norm's statistics again on whole photos: `python -m model.recalibrate CKPT -o OUT`.

Training sees crops at random scales; evaluation sees whole photos at their own size, padded
to the crop size. Means and variances of the maps differ between the two, and with the
crops' statistics a network scores less than it could (Touvron et al. 2019 found the same
for classifiers). This command runs training photos the way evaluation does and replaces the
running statistics. No weight is changed. Evaluate the result before you use it.

Photos run in batches, and each batch is normalised by its own statistics: the larger the
batch, the closer these are to those of all photos. A batch of 32 photos of 513 x 513 takes
the bundled network about 7 GB.
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
from model.data.dataset import Dataset, DatasetError, find, read_source
from model.data.guess import choose
from model.data.loader import balanced_weights, first_readable, pixel_counts
from model.network.deeplab import DeepLabV3Plus
from model.network.inference import Photo, fitted, pad
from model.network.layers import batch_norms


def drawn(dataset: Dataset, sampling: str, count: int, seed: int) -> NDArray[np.int64]:
    """Indices (count,) of photos: balanced, or uniform, each photo once before any repeats."""
    rng = np.random.default_rng(seed)
    total = len(dataset.pairs)
    if sampling == "balanced":
        weights = balanced_weights(pixel_counts(dataset))
        return rng.choice(total, count, p=weights / weights.sum())
    rounds = [rng.permutation(total) for _ in range(-(-count // total))]
    return np.concatenate(rounds)[:count]


def whole(dataset: Dataset, order: NDArray[np.int64], net: DeepLabV3Plus) -> Iterator[Tensor]:
    """The photos padded like in evaluation, larger ones shrunk first: (1, C, H, W) each.

    Raises DatasetError if many photos in a row are damaged.
    """

    def read(at: int) -> Photo:
        source, _ = read_source(dataset, dataset.pairs[order[at % len(order)]])
        return fitted(source, net.config.crop_size)[0]

    for position in range(len(order)):
        small, _ = first_readable(position, read)
        x = torch.from_numpy(np.array(small)).permute(2, 0, 1)[None]
        yield pad(x.to(net.logits.weight), net, net.config.crop_size)


class Pooled:
    """Mean and variance of the input of a batch norm, over many batches of equal size.

    The variance over all batches is the mean of their variances plus the variance of their
    means; training's running statistics leave the second part out (Wu and Johnson 2021,
    "Rethinking 'Batch' in BatchNorm", section 3).
    """

    def __init__(self, norm: _BatchNorm) -> None:
        if norm.running_mean is None or norm.running_var is None:
            raise ValueError("this batch norm keeps no statistics")
        self.mean, self.variance = norm.running_mean, norm.running_var
        self.means, self.squares, self.variances = torch.zeros(
            3, len(self.mean), dtype=torch.float64, device=self.mean.device
        )
        norm.reset_running_stats()
        norm.momentum = 1.0  # the running statistics then are those of the last batch alone
        norm.train()
        self.hook = norm.register_forward_hook(self.add)

    def add(self, _: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        """Forward hook: add the statistics that the layer has just kept of a batch."""
        values = inputs[0].numel() // len(self.mean)  # of each channel
        mean = self.mean.double()
        self.means += mean
        self.squares += mean.square()
        self.variances += self.variance.double() * ((values - 1) / values)  # was unbiased

    def finish(self, batches: int) -> None:
        """Write the statistics over all `batches` into the layer."""
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
    p.add_argument(
        "--photos",
        type=arguments.positive,
        default=1600,
        metavar="N",
        help="photos to measure on (default: 1600)",
    )
    p.add_argument(
        "--batch",
        type=arguments.positive,
        default=32,
        metavar="N",
        help="photos in a batch, a divisor of --photos (default: 32)",
    )
    p.add_argument("--seed", type=int, default=0, help="seed of the drawn photos (default: 0)")
    arguments.add_device(p)
    return p


def less_memory(batch: int) -> str:
    """Advice when memory runs out with batches of so many photos, at least 2."""
    fewer = f"--batch {batch}: take fewer photos at once; or "
    return (fewer if batch > 2 else "") + arguments.SMALLER_CROP


def main(argv: list[str] | None = None) -> int:
    p = parser()
    args = p.parse_args(argv)
    if args.batch < 2 or args.photos % args.batch:
        p.error(f"--batch {args.batch}: give at least 2, and --photos a multiple of it")
    try:
        net = checkpoint.load_on(args.device, args.checkpoint)
        card = checkpoint.read_card(args.checkpoint)
        args.split = args.split or card.training.get("split", "trainaug")
        kind = choose(args.dataset, args.data, card.training.get("dataset"))
        dataset = find(kind, args.data, args.split)
        order = drawn(dataset, args.sampling, args.photos, args.seed)
        with memory.advising(less_memory(args.batch)):
            recalibrate(net, whole(dataset, order, net), args.photos, args.batch)
        note = {key: getattr(args, key) for key in ("split", "sampling", "photos", "batch", "seed")}
        training = card.training | {"recalibrated": note}
        card = card.model_copy(update={"training": training, "metrics": {}})
        path = checkpoint.save(args.out, net.state_dict(), card)
    except (CheckpointError, DatasetError, memory.ShortageError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"wrote {path}")
    return 0


script = memory.keeping_freed(main)

"""Measure the mean IoU of a checkpoint: `python -m model.evaluate CKPT --data DIR --split val`.

The paper's protocol: one confusion matrix over the whole split, void pixels
ignored, photos at their own size, padded with the mean pixel to the crop size.
Photos larger than the crop size are shrunk to it, as the service does; --whole and
--sliding take them otherwise. --trimap adds mIoU in bands around the void label,
--boundary the boundary IoU of each class; all of it takes one pass over the pictures.
"""

from __future__ import annotations

import argparse
import sys

from model import arguments, checkpoint, memory
from model.data.dataset import DatasetError
from model.data.survey import expect_classes, survey
from model.evaluate.evaluation import evaluate, larger
from model.evaluate.options import (
    add_evaluation_arguments,
    evaluation_arguments,
    open_part,
    report,
)
from model.evaluate.predict import add_refinement, predictor
from postprocess.errors import InvalidOption


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m model.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python -m model.evaluate runs/light/model --data DATA --output-stride 8",
    )
    arguments.add_checkpoint(p)
    add_evaluation_arguments(p)
    arguments.add_passes(p)
    arguments.add_windows(p)
    add_refinement(p)
    p.add_argument("--record", action="store_true", help="store the figures in NAME.json")
    arguments.add_device(p)
    return p


def main(argv: list[str] | None = None) -> int:
    args, overlap = evaluation_arguments(parser(), argv)
    try:
        card = checkpoint.read_card(args.checkpoint)
        dataset, part = open_part(
            args, card.classes, card.model.samples, card.training.get("dataset")
        )
        expect_classes(survey(dataset))
        net = checkpoint.load_on(args.device, args.checkpoint, args.output_stride)
        predict = predictor(net, args, overlap)
        with memory.advising(arguments.LESS_MEMORY):
            result = evaluate(dataset, predict, args)
        result |= part | {
            "output_stride": net.config.output_stride,
            "scales": list(args.scales),
            "flip": args.flip,
            "sliding_overlap": overlap,
            **larger(dataset, net.config.crop_size, args),
        }
        report(result, args)
        if args.record:
            checkpoint.record_metrics(args.checkpoint, result)
    except (
        checkpoint.CheckpointError,
        DatasetError,
        memory.ShortageError,
        InvalidOption,
        OSError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


script = memory.keeping_freed(main)


if __name__ == "__main__":
    raise SystemExit(script())

"""Run the command line on a video."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from pathlib import Path
from urllib.parse import parse_qsl

from service.client import flags
from service.client.connection import choose, connected
from service.client.errors import ClientError, StatusError, UsageError
from service.client.pace import Pace
from service.client.plain import counted, plain
from service.client.progress import Counts, Progress, duration
from service.client.video.frames import Source
from service.client.video.run import MOST_IN_FLIGHT, Clip, Look

OUTPUTS = ("overlay", "color", "mask")
OF_THE_OVERLAY = ("alpha", "legend")  # which is made here


async def run(options: argparse.Namespace) -> int:
    """Segment the one video among the inputs; return the exit code."""
    look = _look(options)
    look.check(options.out)
    pace = Pace(maximum=MOST_IN_FLIGHT)
    if options.concurrency is not None:
        pace = Pace.fixed(options.concurrency)
    progress = Progress(Counts(), sys.stderr)
    began = time.monotonic()
    with Source(Path(options.inputs[0])) as source:
        progress.total = source.count()
        async with connected(options, pace, progress) as client:
            model = await choose(client, options)
            if model is None:
                raise ClientError("the service names no default model: choose one with --model")
            query = dict(parse_qsl(flags.query(options)))
            for name in OF_THE_OVERLAY:
                query.pop(name, None)
            clip = Clip(
                client, model, query, source, options.out, look, pace, progress, options.local
            )
            try:
                await clip.run()
            except StatusError as error:
                if error.code != "invalid-request":
                    raise
                hint = flags.correction(flags.query(options), error.detail)
                raise UsageError(f"the service refuses: {error.detail}: {hint}") from error
            finally:
                progress.close()
        _tell(options, progress.counts.sent, source, time.monotonic() - began)
    return 0


def _look(options: argparse.Namespace) -> Look:
    output = "overlay" if options.output == flags.DEFAULT_OUTPUT else options.output
    if output not in OUTPUTS:
        raise UsageError(f"--output {output}: for a video, one of {', '.join(OUTPUTS)}")
    for name in flags.NOT_OF_VIDEOS:
        if getattr(options, name):
            raise UsageError(f"--{name.replace('_', '-')} is not for videos")
    alpha = 0.5 if options.alpha is None else options.alpha
    if not 0 <= alpha <= 1:
        raise UsageError(f"--alpha {alpha:g}: 0 to 1")
    if options.legend:
        _check_legend(output)
    return Look(output, alpha, options.steady, bool(options.legend))


def _check_legend(output: str) -> None:
    if output != "overlay":
        raise UsageError(f"--legend is drawn into the overlay: leave out --output {output}")
    if importlib.util.find_spec("PIL") is None:
        raise UsageError("--legend of a video needs Pillow: pip install pillow")


def _tell(options: argparse.Namespace, frames: int, source: Source, seconds: float) -> None:
    sound = ", ".join(each.codec_context.name for each in source.sounds) or "none"
    if options.json:
        told = {"file": str(options.out), "frames": frames, "seconds": round(seconds, 3)}
        told |= {"sounds": len(source.sounds), "damaged": source.damaged}
        print(json.dumps(told))
        return
    rate = frames / seconds if seconds > 0 else 0.0
    ran = f"{counted(frames, 'frame')} in {duration(seconds)} ({rate:.1f}/s)"
    print(plain(f"{options.out}: {ran}, sound: {sound}"))
    if source.damaged:
        print(f"left out: {counted(source.damaged, 'damaged packet')} of the video")

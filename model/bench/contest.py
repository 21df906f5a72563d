"""Compare training speed with other loops.

Each side has a process of its own, since how a process keeps memory is part of its speed.
The two take turns and each reports its median iteration, so that other work on the machine
affects both.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from multiprocessing.connection import Connection
from typing import Any

from model import memory
from model.bench.sides import CONTESTS, ours, random_batch, recipe_of, this_machine


def contest(side: str, name: str, args: argparse.Namespace, turns: Connection) -> None:
    """Run in a process: send the number of parameters, then the seconds of each step."""
    world = this_machine()
    pair = CONTESTS[name]
    if side == "ours":
        memory.keep_freed_on_a_cpu()
    play = ours if side == "ours" else pair.theirs
    net, step = play(recipe_of(pair.model, args), random_batch(args), world)
    turns.send(sum(p.numel() for p in net.parameters()))
    while turns.recv():
        began = time.perf_counter()
        step()  # returns the loss, so the device is done
        turns.send(time.perf_counter() - began)


def compare(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Crops per second of both, and their ratio."""
    context = multiprocessing.get_context("spawn")
    sides: dict[str, Connection] = {}
    processes = []
    for side in ("ours", "theirs"):
        sides[side], end = context.Pipe()
        process = context.Process(target=contest, args=(side, name, args, end), daemon=True)
        process.start()
        end.close()  # the process has its own: if it dies, receiving fails at once
        processes.append(process)
    parameters = {side: turns.recv() for side, turns in sides.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(1 + args.iterations):
        for side, turns in sides.items():
            turns.send(True)
            seconds[side].append(turns.recv())
    for turns, process in zip(sides.values(), processes, strict=True):
        turns.send(False)
        process.join()
    # Leave out the first iteration, which allocates and compiles.
    speeds = {side: args.batch / statistics.median(times[1:]) for side, times in seconds.items()}
    return {
        "net": name,
        "rival": CONTESTS[name].rival,
        "ours_crops_per_second": round(speeds["ours"], 3),
        "theirs_crops_per_second": round(speeds["theirs"], 3),
        "ratio": round(speeds["ours"] / speeds["theirs"], 3),
        "ours_parameters": parameters["ours"],
        "theirs_parameters": parameters["theirs"],
    }

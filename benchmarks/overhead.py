"""
Measures what sam_hf adds to an update in addition to the passes, which are Trainer's own: norm, snapshot, perturb,
restore, combine, random states, metrics, step length and the rest of its Python code.

    python benchmarks/overhead.py --output benchmarks/results/overhead.json
    python benchmarks/overhead.py --output benchmarks/results/overhead_cuda.json   # where torch sees a GPU

A wrapper times each piece, without the pieces inside it. "pass" is the time of Trainer's own `training_step`. The
share is that of the whole update, including the optimizer. On a GPU, the wrappers wait for the device around every
piece: the result is an upper bound, because it includes launches that other work would hide. Without a GPU it is
processor time.
"""

from __future__ import annotations

import functools
import gc
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from cost_cell import Bench, Cell, clock, write
from step_time import cell_parser, cells
from transformers import Trainer
from transformers.utils import logging

from sam_hf import SAMTrainer
from sam_hf.methods import METHODS
from sam_hf.reports.environment import environment
from sam_hf.tensors.optimizers import StepLength
from sam_hf.trainer.runner import TrainerRunner
from sam_hf.update import ascent_window
from sam_hf.update.perturbation import Perturbation
from sam_hf.update.random_state import RandomState
from sam_hf.update.running_means import RunningMeans

PASS = "pass"
PIECES: list[tuple[Any, str, str]] = [
    (Trainer, "training_step", PASS),
    (Trainer, "get_batch_samples", "batches (Trainer)"),
    (SAMTrainer, "training_step", "the rest of a step"),
    (SAMTrainer, "get_batch_samples", "the rest of a window"),
    *((method, "ascent", "norm and direction") for method in METHODS.values() if "ascent" in vars(method)),
    (Perturbation, "add", "snapshot and perturb"),
    (Perturbation, "restore", "restore"),
    (ascent_window, "take_gradients", "gradients set aside"),
    (ascent_window, "give_gradients_back", "gradients set aside"),
    (ascent_window, "combine", "combine"),
    (RandomState, "__init__", "random states"),
    (RandomState, "restore", "random states"),
    (RunningMeans, "add", "metrics"),
    (TrainerRunner, "_choose_parameters", "what a pass needs"),
    (StepLength, "before_step", "step length"),
    (StepLength, "after_step", "step length"),
]
TRAINERS_OWN = (PASS, "batches (Trainer)")
VARIANTS_OF_INTEREST = ["sam", "sam, radius auto", "gsam", "looksam (every 5th update)"]


class Pieces:
    """Sums the seconds of each piece, without those of the pieces inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []  # for each open piece, the seconds of the pieces inside it

    def timed(self, function: Callable, label: str) -> Callable:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            started = now()
            self._inside.append(0.0)
            try:
                return function(*args, **kwargs)
            finally:
                took = now() - started
                self.seconds[label] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return wrapper


def now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock()


@contextmanager
def wrapped(pieces: Pieces) -> Iterator[None]:
    own = [(owner, name, vars(owner).get(name)) for owner, name, _ in PIECES]
    functions = [getattr(owner, name) for owner, name, _ in PIECES]
    for (owner, name, label), function in zip(PIECES, functions, strict=True):
        setattr(owner, name, pieces.timed(function, label))
    try:
        yield
    finally:
        for owner, name, before in own:
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


def profile(cell: Cell, variant: str, output_dir: str) -> dict[str, Any]:
    """
    Return the milliseconds per update of each piece, as medians over rounds, and the part of an update that is not
    Trainer's own.
    """
    bench = Bench(cell, output_dir)
    rounds = []
    for _ in range(cell.rounds):
        pieces = Pieces()
        with wrapped(pieces):
            timer = bench.turn(variant, at_start=pieces.seconds.clear)
        row = {label: seconds / bench.counted_updates(variant) for label, seconds in pieces.seconds.items()}
        rounds.append({"update": timer.seconds, **row})
    labels = list(dict.fromkeys(label for row in rounds for label in row))
    table = {label: 1000 * statistics.median(row.get(label, 0.0) for row in rounds) for label in labels}
    added = sum(ms for label, ms in table.items() if label not in (*TRAINERS_OWN, "update"))
    return {"milliseconds": table, "added_ms": added, "added_share": added / table["update"]}


def main() -> None:
    on_gpu = torch.cuda.is_available()
    options = cell_parser(
        __doc__, models=["small", "large"], variants=VARIANTS_OF_INTEREST, updates=5 if on_gpu else 2, rounds=3
    ).parse_args()
    logging.set_verbosity_error()
    gc.freeze()
    result: dict[str, Any] = {"environment": environment(), "cells": []}
    with tempfile.TemporaryDirectory() as output_dir:
        for cell in cells(options):
            settings = {name: getattr(cell, name) for name in ("model", "precision", "batch_size", "length")}
            rows = {variant: profile(cell, variant, output_dir) for variant in options.variants}
            result["cells"].append({"settings": settings, "rows": rows})
            for variant, row in rows.items():
                print(
                    f"{cell.model}, {cell.precision}, {variant}: {row['added_ms']:.2f} of "
                    f"{row['milliseconds']['update']:.1f} ms per update are sam_hf's, {row['added_share']:.2%}",
                    flush=True,
                )
            write(result, options.output)


if __name__ == "__main__":
    main()

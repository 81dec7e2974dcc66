"""
What sam_hf adds to an update beyond the passes, which are Trainer's own: norm, snapshot, perturb, restore, combine,
random states, metrics, step length and everything else of its Python.

    python benchmarks/overhead.py --output benchmarks/results/overhead.json
    python benchmarks/overhead.py --output benchmarks/results/overhead_cuda.json   # where torch sees a GPU

Each piece is timed by a wrapper around it, less the pieces inside it; "pass" is what Trainer's own `training_step`
takes, and the share is of the whole update, optimizer included. On a GPU the device is waited for around every piece:
an upper bound, since launches that would be hidden behind other work are then seen. Without one it is processor time.
"""

from __future__ import annotations

import argparse
import functools
import gc
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cost_cell import MODELS, TINY_BATCH, VARIANTS, Bench, Cell, clock, write
from transformers import Trainer
from transformers.utils import logging

import sam_hf.update.ascent_window as window
from sam_hf import SAMTrainer
from sam_hf.methods import METHODS
from sam_hf.reports.environment import environment
from sam_hf.tensors.step_length import StepLength
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
    (window, "take_gradients", "gradients set aside"),
    (window, "give_gradients_back", "gradients set aside"),
    (window, "combine", "combine"),
    (RandomState, "__init__", "random states"),
    (RandomState, "restore", "random states"),
    (RunningMeans, "add", "metrics"),
    (SAMTrainer, "_passes", "what a pass needs"),
    (StepLength, "before_step", "step length"),
    (StepLength, "after_step", "step length"),
]
TRAINERS_OWN = (PASS, "batches (Trainer)")
VARIANTS_OF_INTEREST = ["sam", "sam, radius auto", "gsam", "looksam (every 5th update)"]


class Pieces:
    """Seconds by piece, exclusive of the pieces inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []  # of each open piece: seconds of the pieces inside it

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
    """Milliseconds an update by piece, medians over rounds, and the share of an update that is not Trainer's own."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=list(MODELS), nargs="+", default=["small", "large"])
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), nargs="+", default=["fp32"])
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", default=VARIANTS_OF_INTEREST)
    parser.add_argument("--batch_size", type=int, default=32, help="examples of an update, on the first model")
    parser.add_argument("--length", type=int, default=128, help="tokens of an example, on the first model")
    parser.add_argument("--updates", type=int, default=5 if on_gpu else 2, help="counted updates a round, at least")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, help="result file")
    options = parser.parse_args()
    logging.set_verbosity_error()
    gc.freeze()
    result: dict[str, Any] = {"environment": environment(), "cells": []}
    with tempfile.TemporaryDirectory() as output_dir:
        for place, model in enumerate(options.models):
            batch = {"batch_size": options.batch_size, "length": options.length} if place == 0 else TINY_BATCH
            for precision in options.precision:
                cell = Cell(model, precision, **batch, updates=options.updates, uncounted=2, rounds=options.rounds)
                rows = {variant: profile(cell, variant, output_dir) for variant in options.variants}
                result["cells"].append({"settings": {"model": model, "precision": precision, **batch}, "rows": rows})
                for variant, row in rows.items():
                    update = row["milliseconds"]["update"]
                    print(
                        f"{model}, {precision}, {variant}: {row['added_ms']:.2f} of {update:.1f} ms an update are "
                        f"sam_hf's, {row['added_share']:.2%}",
                        flush=True,
                    )
                write(result, options.output)


if __name__ == "__main__":
    main()

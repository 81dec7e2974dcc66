"""
What an update of every method costs against plain Trainer, and against SAM as it is used without sam_hf: time, FLOPs
and peak memory, on a BERT of MiniLM's size and on larger ones; and how that grows.

    python benchmarks/step_time.py --output benchmarks/results/step_time.json             # on the CPU
    python benchmarks/step_time.py --output benchmarks/results/step_time_cuda.json --models small large \\
        --precision fp32 bf16 fp16 --rounds 3 --seconds 140                                # on a GPU

Time: the variants train in turn in one process, so that a machine whose speed drifts slows them alike; the ratio is
taken round by round. Without a GPU it is the processor time of one process. Memory: on a GPU the peak of the counted
updates, else the peak of one fresh process a variant, over tiny batches. nbar trains LoRA adapters: it is compared
with plain training of these. `--seconds` bounds the rounds and not the set-up; one round of each part is always run.
The result file is written after each part: where a run was cut off, the same command goes on. With `--growth none` the
growth that it holds stays; with `--growth_only` all the rest does, and nothing is written before the end.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from cost_cell import (
    MODELS,
    TINY_BATCH,
    VARIANTS,
    Bench,
    Cell,
    measure,
    memory_table,
    peak_resident_bytes,
    possible,
    write,
)
from cost_growth import AXES, growth
from transformers.utils import logging

from sam_hf.reports.environment import environment

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "peft", "pytorch_optimizer")
GROWTH_MODELS = ["quarter", "small", "base", *(["large"] if torch.cuda.is_available() else [])]
GROWTH_SHARE = 0.2  # of the seconds
# What the result file holds of a cell
ROW = ("settings", "flops", "time", "memory", "memory_environment")


def cells(options: argparse.Namespace) -> Iterator[Cell]:
    """Each model in each precision; the first model with the batch that was asked for."""
    number = len(options.models) * len(options.precision)
    seconds = options.seconds * (1 - GROWTH_SHARE if options.growth else 1)
    for place, model in enumerate(options.models):
        batch = {"batch_size": options.batch_size, "length": options.length} if place == 0 else TINY_BATCH
        for precision in options.precision:
            yield Cell(
                model=model,
                precision=precision,
                updates=options.updates,
                uncounted=options.uncounted,
                rounds=options.rounds,
                seconds=seconds / number,
                **batch,
            )


def memory_of(variant: str, options: argparse.Namespace, output_dir: str) -> dict[str, int]:
    bench = Bench(Cell(model=options.models[0], **TINY_BATCH, updates=2), output_dir)
    bench.turn(variant)
    return {"peak_bytes": peak_resident_bytes(), "trained_bytes": bench.trained_bytes(variant)}


def memory_by_process(variants: list[str], model: str) -> dict[str, dict[str, float]]:
    rows = {}
    for variant in variants:
        command = [sys.executable, __file__, "--models", model, "--memory_of", variant]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        rows[variant] = json.loads(answer.stdout.splitlines()[-1])
    return memory_table(
        {v: r["peak_bytes"] for v, r in rows.items()}, {v: r["trained_bytes"] for v, r in rows.items()}
    )


def run(options: argparse.Namespace, output_dir: str) -> dict[str, Any]:
    variants, left_out = possible(options.variants)
    result: dict[str, Any] = {"environment": environment(PACKAGES), "left_out": left_out, "more": []}
    planned = list(cells(options))
    earlier = measured_earlier(options, result["environment"])
    # They depend on the model alone, not on the precision
    with_flops = [options.flops and cell.precision == options.precision[0] for cell in planned]
    rows = [row_of(cell, variants, counts, earlier) for cell, counts in zip(planned, with_flops, strict=True)]
    if options.growth:
        known = earlier[0].get("growth", {}) if rows[0] else {}
        result["growth"] = {axis: known[axis] for axis in options.growth if axis in known}
        result["growth_environment"] = result["environment"]
    elif options.output and options.output.exists():
        found = json.loads(options.output.read_text())
        if "growth" in found:
            result["growth"] = found["growth"]
            result["growth_environment"] = found.get("growth_environment", found["environment"])
    for place, cell in enumerate(planned):
        rows[place] = rows[place] or measure(cell, variants, output_dir, with_flops[place])
        show(rows[place])
        result |= rows[0]  # what the table in the README is made of
        result["more"] = [row for row in rows[1:] if row]
        write(result, options.output)
    if options.growth:
        first = replace(planned[0], seconds=options.seconds * GROWTH_SHARE)
        missing = [axis for axis in options.growth if axis not in result["growth"]]
        for axis, axis_rows in growth(first, missing, options.growth_models, output_dir):
            result["growth"][axis] = axis_rows
            write(result, options.output)
    if options.memory and not torch.cuda.is_available() and list(result.get("memory", {})) != variants:
        result["memory_environment"] = environment(PACKAGES)
        result["memory"] = memory_by_process(variants, options.models[0])
    return result


def measured_earlier(options: argparse.Namespace, here: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells in the result file of a run that was cut off, if it was one of this code on this machine."""
    if options.anew or options.output is None or not options.output.exists():
        return []
    found = json.loads(options.output.read_text())
    return [found, *found["more"]] if found["environment"] == here else []


def row_of(cell: Cell, variants: list[str], with_flops: bool, earlier: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What was measured of this cell."""
    # How long it was to take, and how many rounds that were, may differ
    wanted = {key: value for key, value in asdict(cell).items() if key not in ("seconds", "rounds")}
    for row in earlier:
        same = wanted.items() <= row["settings"].items() and list(row["time"]) == variants
        if same and ("flops" in row or not with_flops):
            return {key: row[key] for key in ROW if key in row}
    return None


def show(row: dict[str, Any]) -> None:
    settings = row["settings"]
    print(settings["model"], settings["precision"], f"{settings['rounds']} round(s)", flush=True)
    for variant, times in row["time"].items():
        seconds, ratio = times["seconds_per_update"], times["times_plain"]
        print(f"  {variant}: {1000 * seconds['median']:.1f} ms, {ratio['median']:.3f} times plain", flush=True)


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=list(MODELS), nargs="+", default=["small", "large" if on_gpu else "base"])
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), nargs="+", default=["fp32"])
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", default=list(VARIANTS), metavar="VARIANT")
    parser.add_argument("--batch_size", type=int, default=32, help="examples of one update, on the first model")
    parser.add_argument("--length", type=int, default=128, help="tokens of one example, on the first model")
    parser.add_argument("--updates", type=int, default=3 if on_gpu else 1, help="counted updates a turn, at least")
    parser.add_argument("--uncounted", type=int, default=Cell.uncounted, help="updates of a turn before those")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, at most")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="wall time of all rounds, roughly")
    parser.add_argument("--growth", choices=("none", *AXES), nargs="+", default=list(AXES), help="what grows")
    parser.add_argument("--growth_models", choices=list(MODELS), nargs="+", default=GROWTH_MODELS)
    parser.add_argument("--flops", action=argparse.BooleanOptionalAction, default=True, help="count FLOPs")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="peaks, on the CPU")
    parser.add_argument("--memory_only", action="store_true", help="measure the memory anew in the result file (CPU)")
    parser.add_argument("--growth_only", action="store_true", help="measure the growth anew in the result file")
    parser.add_argument("--output", type=Path, help="result file; what it holds of them is not measured again")
    parser.add_argument("--anew", action="store_true", help="measure it again")
    parser.add_argument("--memory_of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.growth = [axis for axis in options.growth if axis != "none"]
    if "fp16" in options.precision and not on_gpu:
        parser.error("--precision fp16 needs a GPU: on the CPU there are fp32 and bf16")
    if options.growth_only and not options.growth:
        parser.error("--growth_only and --growth none leave nothing to measure")
    if "none" not in options.variants:
        parser.error("--variants lacks 'none', which the others are compared with")
    logging.set_verbosity_error()
    gc.freeze()  # every turn collects garbage; what the imports left is none
    with tempfile.TemporaryDirectory() as output_dir:
        if options.memory_of:
            print(json.dumps(memory_of(options.memory_of, options, output_dir)))
            return
        if options.memory_only:
            result = json.loads(options.output.read_text())
            result |= {"memory_environment": environment(PACKAGES)}
            result["memory"] = memory_by_process(list(result["time"]), options.models[0])
        elif options.growth_only:
            result = json.loads(options.output.read_text())
            first = replace(next(cells(options)), seconds=options.seconds)
            result["growth_environment"] = environment(PACKAGES)
            result["growth"] = dict(growth(first, options.growth, options.growth_models, output_dir))
        else:
            result = run(options, output_dir)
    write(result, options.output)


if __name__ == "__main__":
    main()

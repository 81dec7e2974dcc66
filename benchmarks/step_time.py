"""
Measures what an update of every method costs, compared with plain Trainer and with SAM as it is used without sam_hf:
time, FLOPs and peak memory, on a BERT of MiniLM's size and on larger ones; and how this cost grows.

    python benchmarks/step_time.py --output benchmarks/results/step_time.json             # on the CPU
    python benchmarks/step_time.py --output benchmarks/results/step_time_cuda.json --models small large \\
        --precision fp32 bf16 fp16 --rounds 3 --seconds 140                                # on a GPU

Time: the variants train in turn in one process, so that a drift of the machine's speed slows all of them equally; the
ratios are taken round by round. Without a GPU, it is the processor time of one process. Memory: on a GPU, it is the
peak of the counted updates; without one, the peak of one new process per variant, over tiny batches. nbar trains LoRA
adapters, so it is compared with plain training of these adapters.

`--seconds` limits the rounds and not the set-up; at least one round of each part is run. The result file is written
after each part: if a run was interrupted, the same command continues it. `--growth none` keeps the growth that the
result file holds; `--growth_only` keeps everything else in it, and writes nothing before the end.
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
from cost_cell import MODELS, TINY_BATCH, VARIANTS, Bench, Cell, measure, memory_table, possible, write
from cost_growth import AXES, growth
from sharpness_cost import peak_resident_bytes
from transformers.utils import logging

from sam_hf.reports.environment import environment

PACKAGES = ("torch", "transformers", "accelerate", "datasets", "evaluate", "peft", "pytorch_optimizer")
GROWTH_MODELS = ["quarter", "small", "base", *(["large"] if torch.cuda.is_available() else [])]
GROWTH_SHARE = 0.2  # of `--seconds`
# The keys of the result file that belong to a cell
ROW = ("settings", "flops", "time", "memory", "memory_environment")


def cell_parser(description: str, **defaults: Any) -> argparse.ArgumentParser:
    """Return a parser of the options that `cells` reads, of the variants and of the result file."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=list(MODELS), nargs="+")
    parser.add_argument("--precision", choices=("fp32", "bf16", "fp16"), nargs="+", default=["fp32"])
    parser.add_argument("--variants", choices=list(VARIANTS), nargs="+", metavar="VARIANT")
    parser.add_argument("--batch_size", type=int, default=32, help="examples per update, on the first model")
    parser.add_argument("--length", type=int, default=128, help="tokens per example, on the first model")
    parser.add_argument("--updates", type=int, help="least number of counted updates per turn")
    parser.add_argument("--rounds", type=int, help="largest number of rounds")
    parser.add_argument("--output", type=Path, help="result file")
    parser.set_defaults(**defaults)
    return parser


def cells(options: argparse.Namespace, **settings: Any) -> Iterator[Cell]:
    """Yield each model in each precision. Only the first model has the batch size and length of the options."""
    for place, model in enumerate(options.models):
        batch = {"batch_size": options.batch_size, "length": options.length} if place == 0 else TINY_BATCH
        for precision in options.precision:
            yield Cell(model, precision, **batch, updates=options.updates, rounds=options.rounds, **settings)


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
    seconds = options.seconds * (1 - GROWTH_SHARE if options.growth else 1)
    number = len(options.models) * len(options.precision)
    planned = list(cells(options, uncounted=options.uncounted, seconds=seconds / number))
    earlier = measured_earlier(options, result["environment"])
    # FLOPs depend only on the model, not on the precision
    with_flops = [options.flops and cell.precision == options.precision[0] for cell in planned]
    rows = [row_of(cell, variants, counts, earlier) for cell, counts in zip(planned, with_flops, strict=True)]
    if options.growth:
        known = earlier[0].get("growth", {}) if rows[0] else {}
        result["growth"] = {axis: known[axis] for axis in options.growth if axis in known}
        result["growth_environment"] = result["environment"]
    elif options.output and options.output.exists():
        before = json.loads(options.output.read_text())
        if "growth" in before:
            result["growth"] = before["growth"]
            result["growth_environment"] = before.get("growth_environment", before["environment"])
    for place, cell in enumerate(planned):
        rows[place] = rows[place] or measure(cell, variants, output_dir, with_flops[place])
        show(rows[place])
        result |= rows[0]  # the table in the README is made of it
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


def measured_earlier(options: argparse.Namespace, current: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the cells of an interrupted run from the result file, if it ran in the current environment."""
    if options.again or options.output is None or not options.output.exists():
        return []
    before = json.loads(options.output.read_text())
    return [before, *before["more"]] if before["environment"] == current else []


def row_of(cell: Cell, variants: list[str], with_flops: bool, earlier: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what was measured earlier of this cell, or None."""
    # The limit of time, and the number of rounds that fit in it, may differ
    settings = {key: value for key, value in asdict(cell).items() if key not in ("seconds", "rounds")}
    for row in earlier:
        same = settings.items() <= row["settings"].items() and list(row["time"]) == variants
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
    models = ["small", "large" if on_gpu else "base"]
    parser = cell_parser(__doc__, models=models, variants=list(VARIANTS), updates=3 if on_gpu else 1, rounds=5)
    parser.add_argument("--uncounted", type=int, default=Cell.uncounted, help="earlier updates per turn")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="wall time of all rounds, roughly")
    parser.add_argument("--growth", choices=("none", *AXES), nargs="+", default=list(AXES), help="what grows")
    parser.add_argument("--growth_models", choices=list(MODELS), nargs="+", default=GROWTH_MODELS)
    parser.add_argument("--flops", action=argparse.BooleanOptionalAction, default=True, help="count FLOPs")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True, help="peaks, on the CPU")
    parser.add_argument("--memory_only", action="store_true", help="replace only the memory in the result file (CPU)")
    parser.add_argument("--growth_only", action="store_true", help="replace only the growth in the result file")
    parser.add_argument("--again", action="store_true", help="measure again what the result file already holds")
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
    gc.freeze()  # every turn collects garbage, and what the imports created is not garbage
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
            first = next(cells(options, uncounted=options.uncounted, seconds=options.seconds))
            result["growth_environment"] = environment(PACKAGES)
            result["growth"] = dict(growth(first, options.growth, options.growth_models, output_dir))
        else:
            result = run(options, output_dir)
    write(result, options.output)


if __name__ == "__main__":
    main()

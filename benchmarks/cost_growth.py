"""Measures how the cost of an update grows with parameters, accumulation steps, micro-batch and processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from cost_cell import BASELINE_UPDATES, PLAIN, Cell, measure

DAVDA = "davda54's SAM in Trainer"
FEW = [PLAIN, "sam", "sam, radius auto", DAVDA]


def growth(
    cell: Cell, axes: list[str], models: list[str], output_dir: str
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """
    Yield each axis with its cells, as soon as they are measured.

    Args:
        cell: everything except what grows; its seconds are the time of all axes together.
        axes: names in `AXES`.
        models: the models along the axis of parameters.
    """
    batch = cell.batch_size
    # One update over few examples takes milliseconds; a single such time is noise
    short = replace(cell, updates=max(cell.updates, BASELINE_UPDATES))
    cells = {
        "parameters": [replace(short, model=m, batch_size=min(4, batch), length=min(32, cell.length)) for m in models],
        # The same examples per update
        "accumulation": [replace(cell, accumulation=steps) for steps in (1, 2, 4) if steps <= batch],
        "micro_batch": [
            replace(cell if size == batch else short, batch_size=size)
            for size in sorted({max(1, batch // 16), max(1, batch // 4), batch})
        ],
    }
    cells = {axis: cells[axis] for axis in axes if axis in cells}
    share = cell.seconds / max(1, sum(map(len, cells.values())))
    for axis, row in cells.items():
        # The rivals lose the gradients of earlier micro-batches, so their update is not the same
        variants = [v for v in FEW if axis != "accumulation" or v != DAVDA]
        yield axis, [measure(replace(c, seconds=share), variants, output_dir, with_flops=False) for c in row]
    if "processes" in axes and not torch.cuda.is_available():
        yield "processes", [in_processes(cell, number) for number in (1, 2)]


def in_processes(cell: Cell, number: int) -> dict[str, Any]:
    """
    Measure the cell under DDP, with the cell's number of examples in each process.

    The result is wall time, because waiting is part of it.
    """
    finite = {key: value for key, value in asdict(cell).items() if value != float("inf")}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={number}"),
        *(__file__, json.dumps(finite)),
    ]
    root = Path(__file__).parent.parent
    paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    answer = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ, PYTHONPATH=paths))
    lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
    if not lines:
        raise RuntimeError(f"{number} process(es) gave no result:\n{answer.stderr[-3000:]}")
    result = json.loads(lines[-1])
    result["settings"]["processes"] = number
    return result


def worker() -> None:
    import tempfile

    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.distributed.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as output_dir:
        result = measure(Cell(**json.loads(sys.argv[1])), FEW, output_dir, with_flops=False)
    if torch.distributed.get_rank() == 0:
        print(json.dumps(result), flush=True)
    torch.distributed.barrier()
    os._exit(0)  # gloo can abort while it cleans up


AXES = ("parameters", "accumulation", "micro_batch", "processes")

if __name__ == "__main__":
    worker()

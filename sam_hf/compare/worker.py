"""A process that carries out one run after another, with torch imported and data prepared once."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from .isolation import own_globals
from .plan import Run
from .read import write_config
from .records import FAILED


@dataclass(frozen=True)
class WorkerSettings:
    """
    Attributes:
        output_dir: of the whole comparison.
        number: of the worker, from 0.
        threads: of torch; `None` leaves it to torch.
        device: index of the CUDA device to use, `None` for whatever is there.
        keep_models: leave the trained weights in `output_dir/models`.
    """

    output_dir: Path
    number: int
    threads: int | None
    device: str | None
    keep_models: bool


def work(connection: Connection, settings: WorkerSettings) -> None:
    """Answer every [`Run`] that arrives with the content of its record, until the other end is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _prepare(settings)
    try:
        while True:
            connection.send(carry_out(connection.recv(), settings))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # nobody waits for an answer any more


def _end_with_parent() -> None:
    """
    A command that is killed cannot end its workers. Left alone, one would finish its run first, beside the command
    that takes that run up again in the same folder.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepare(settings: WorkerSettings) -> None:
    """Before torch is imported: threads, device, and a log file in place of the terminal."""
    if settings.threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(settings.threads)
    if settings.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = settings.device
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logs = settings.output_dir / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    log = os.open(logs / f"worker{settings.number}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)

    import datasets
    import torch

    datasets.disable_progress_bars()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def carry_out(run: Run, settings: WorkerSettings) -> dict[str, Any]:
    """The content of the record of `run`: what was measured, or the error."""
    from ..recipes import recipe_main
    from ..reports.environment import environment

    print(f"\n=== {run.name}", flush=True)
    folder = settings.output_dir / "work" / run.key
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    folder.mkdir(parents=True)
    config = write_config(run, folder, settings.keep_models)
    _forget_peak()
    start = time.perf_counter()
    try:
        with own_globals():
            recipe_main(run.recipe)(["--config", str(config)])
        content = read_results(folder / "output")
        content |= {"seconds": time.perf_counter() - start, "memory": _peak_memory(), "environment": environment()}
        if settings.keep_models:
            _keep(folder / "output", settings.output_dir / "models" / run.name)
        return content
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"status": FAILED, "error": f"{type(error).__name__}: {error}", "traceback": traceback.format_exc()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.flush()


def read_results(output: Path) -> dict[str, Any]:
    """
    What a run's `trainer_state.json` and `train_results.json` say.

    Returns:
        `dict`: `evaluations`, one entry an epoch; `train`, Trainer's and the recipe's own figures; `log`, the last of
        the training log; `steps`; `flos`.
    """
    state = json.loads((output / "trainer_state.json").read_text(encoding="utf-8"))
    history = state["log_history"]
    by_step = {entry["step"]: entry for entry in history if "eval_loss" in entry}
    logs = [entry for entry in history if "loss" in entry]
    return {
        "evaluations": list(by_step.values()),
        "train": json.loads((output / "train_results.json").read_text(encoding="utf-8")),
        "log": logs[-1] if logs else {},
        "steps": state["global_step"],
        "flos": state["total_flos"],
    }


def _keep(output: Path, destination: Path) -> None:
    destination.parent.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(destination, ignore_errors=True)
    os.replace(output, destination)


def _forget_peak() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # no Linux, or not allowed: the peak is then that of all runs so far
        pass


def _peak_memory() -> Mapping[str, Any] | None:
    """Bytes at the run's peak: of the CUDA allocator, else resident in the process, torch and data included."""
    import torch

    if torch.cuda.is_available():
        return {"peak": torch.cuda.max_memory_allocated(), "kind": "cuda"}
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return {"peak": int(line.split()[1]) * 1024, "kind": "resident"}

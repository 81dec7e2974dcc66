"""A process that executes one run after the other, so that torch is imported only once."""

from __future__ import annotations

import gc
import json
import math
import multiprocessing
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ..errors import DivergedError
from .plan import Run
from .records import FAILED


@dataclass(frozen=True)
class WorkerSettings:
    """
    The settings of a worker.

    Attributes:
        output_dir: folder of the whole comparison.
        number: number of the worker, from 0.
        threads: number of torch's threads; `None` leaves the choice to torch.
        device: the CUDA device to use; `None` uses what there is.
        keep_models: move the trained weights to `output_dir/models`.
    """

    output_dir: Path
    number: int
    threads: int | None
    device: str | None
    keep_models: bool


def serve_runs(connection: Connection, settings: WorkerSettings) -> None:
    """Execute every [`Run`] that arrives and send back the content of its record, until the other end is closed."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _prepare(settings)
    try:
        while True:
            connection.send(execute_run(connection.recv(), settings))
    except (EOFError, BrokenPipeError, ConnectionResetError, KeyboardInterrupt):
        pass  # nobody waits for a result any more


def _end_with_parent() -> None:
    """
    End this process when the command ends, which cannot end its workers itself if it is killed. Otherwise the worker
    would go on with its run while another command starts the same run in the same folder.
    """
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _prepare(settings: WorkerSettings) -> None:
    """Set threads and device, before torch is imported, and write to a log file instead of the terminal."""
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


def execute_run(run: Run, settings: WorkerSettings) -> dict[str, Any]:
    """Execute `run` and return the content of its record: what was measured, or the error."""
    from ..recipes import recipe_main
    from ..reports.environment import environment

    print(f"\n=== {run.name}", flush=True)
    folder = settings.output_dir / "work" / run.key
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    folder.mkdir(parents=True)
    config = write_config(run, folder, settings.keep_models)
    _reset_peak_memory()
    start = time.perf_counter()
    try:
        has_diverged = False
        with restored_globals():
            try:
                recipe_main(run.recipe)(["--config", str(config)])
            except DivergedError as error:  # a result like others: this variant cannot be trained so
                print(f"error: {error}", flush=True)
                has_diverged = True
        content = read_results(folder / "output")
        if has_diverged:
            content["evaluations"].append(_without_values(content))
        content |= {"seconds": time.perf_counter() - start, "memory": _peak_memory(), "environment": environment()}
        if settings.keep_models:
            models = settings.output_dir / "models"
            models.mkdir(exist_ok=True)
            shutil.rmtree(models / run.name, ignore_errors=True)
            os.replace(folder / "output", models / run.name)
        return content
    except (Exception, SystemExit) as error:
        traceback.print_exc()
        return {"status": FAILED, "error": _in_one_line(error), "traceback": traceback.format_exc()}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        sys.stdout.flush()


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        return f"the recipe ended with exit status {error.code}; the log of its worker says why"
    return " ".join(f"{type(error).__name__}: {error}".split())


def write_config(run: Run, folder: Path, save_model: bool = False) -> Path:
    """Write the recipe's configuration file for `run`, whose results go to `folder`, and return its path."""
    import yaml

    options = {**run.options, "output_dir": str(folder / "output"), "save_final_model": save_model}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(options, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return file


@contextmanager
def restored_globals() -> Iterator[None]:
    """
    Undo on exit what [`~transformers.TrainingArguments`] sets for the whole process: environment variables (for
    `torch_compile` and `fsdp`), `tf32` and `full_determinism`.
    """
    import torch

    variables = dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    # Exists since torch 2.9, and Trainer then uses it. torch refuses a mixture of this and the older setting
    precision = getattr(torch.backends, "fp32_precision", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if precision is not None:
            setattr(torch.backends, "fp32_precision", precision)  # noqa: B010 (torch's stubs lack the name)


def read_results(output: Path) -> dict[str, Any]:
    """
    Read a run's `trainer_state.json` and `train_results.json`.

    Returns:
        `dict`: `evaluations`, one entry per epoch; `train`, the results of Trainer and the recipe; `log`, the last
        entry of the training log; `steps`; `flos`.
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


def _without_values(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the evaluation of a run whose weights are not finite: whatever it measures is NaN."""
    last = content["evaluations"][-1] if content["evaluations"] else {}
    return {
        **dict.fromkeys(last, math.nan),
        "eval_loss": math.nan,
        "epoch": last.get("epoch", 0),
        "step": content["steps"],
    }


def _reset_peak_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: then the peak is over all runs so far
        pass


def _peak_memory() -> Mapping[str, Any] | None:
    """Return the peak in bytes of the CUDA allocator, or without CUDA of the process, torch and data included."""
    import torch

    if torch.cuda.is_available():
        return {"peak": torch.cuda.max_memory_allocated(), "kind": "cuda"}
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return {"peak": int(line.split()[1]) * 1024, "kind": "resident"}

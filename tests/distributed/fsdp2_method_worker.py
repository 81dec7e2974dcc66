"""Trains the sharded model of `fsdp2_trainer_cases` with every method on this rank."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch.distributed as dist
from fsdp2_trainer_cases import Case, save_model
from fsdp2_trainer_worker import run
from ranks import leave

MOMENTUM = 0.9
# With the names that the reference uses
METHODS = {
    "asam": {"method": "asam"},
    "gsam": {"method": "gsam"},
    "wsam": {"method": "wsam"},
    "decoupled wsam": {"method": "wsam", "options": {"decouple": True}},
    "fsam": {"method": "fsam"},
    "vasso": {"method": "vasso", "m": 4},
    "looksam": {"method": "looksam", "interval": 2},
    "msam": {"method": "msam"},
    "half": {"method": "wsam", "fraction": 0.5},
    "norm": {"method": "gsam", "targets": "norm"},
    "norm, fsam": {"method": "fsam", "targets": "norm"},
}
ARGUMENTS = {
    "method": "sam_method",
    "options": "sam_method_kwargs",
    "m": "sam_m",
    "interval": "sam_interval",
    "fraction": "sam_ascent_fraction",
    "targets": "sam_target_modules",
}

if __name__ == "__main__":
    gc.freeze()  # as in conftest.py
    folder = Path(sys.argv[1])
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        save_model(folder / "model")
    dist.barrier()
    for name, settings in METHODS.items():
        arguments = {ARGUMENTS[key]: value for key, value in settings.items()}
        run(name, Case(arguments | {"optim_args": f"momentum={MOMENTUM}"}), folder / "model", folder)
    leave()

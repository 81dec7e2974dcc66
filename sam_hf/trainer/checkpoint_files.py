"""
The files that SAM adds to a checkpoint of Trainer, and the search for the last complete checkpoint.

A checkpoint is Trainer's own plus `sam_state.json`: the `version` of this format, the `method`, the number
of processes that wrote it (`world_size`), and whether the method keeps `tensors`. The tensors are in
`sam_state.safetensors`, or in `sam_state_RANK.safetensors` where processes differ. Without these files it is a
checkpoint of plain Trainer, and resumes as one.
"""

from __future__ import annotations

import json
import os
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers.trainer_callback import TrainerState
from transformers.utils import logging

logger = logging.get_logger(__name__)

STATE_NAME = "sam_state.json"
_VERSION = 1
_KEYS = {"version": int, "method": str, "world_size": int, "tensors": bool}
# The last file of a checkpoint that Trainer writes
_TRAINER_STATE_NAME = "trainer_state.json"


def save_state(folder: str | os.PathLike, method: str, world_size: int, has_tensors: bool) -> None:
    """Write `sam_state.json`, either completely or not at all."""
    path = Path(folder) / STATE_NAME
    state = {"version": _VERSION, "method": method, "world_size": world_size, "tensors": has_tensors}
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(state, indent=2))
    unfinished.replace(path)


def load_state(folder: str | os.PathLike) -> dict[str, Any] | None:
    """
    Return what `save_state` wrote, or `None` for a checkpoint of plain Trainer.

    Raises:
        ValueError: the file exists, but is not what `save_state` writes.
    """
    path = Path(folder) / STATE_NAME
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if isinstance(state, dict) and state.get("version", _VERSION) != _VERSION:
        raise ValueError(f"{path} has version {state['version']!r}, and this sam_hf reads version {_VERSION}")
    if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in _KEYS.items()):
        raise ValueError(f"{path} must hold {', '.join(_KEYS)} in the right types: it holds {json.dumps(state)[:120]}")
    return state


def tensors_path(folder: str | os.PathLike, rank: int | None) -> Path:
    """Return the path of a method's tensors. With a `rank`, each process has a file of its own."""
    return Path(folder) / ("sam_state.safetensors" if rank is None else f"sam_state_{rank}.safetensors")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # a process may arrive before the first one has saved the model
    save_file({name: tensor.detach().cpu() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """
    Read what `save_tensors` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def last_whole_checkpoint(folder: str | os.PathLike | None) -> str | None:
    """
    Return the complete checkpoint with the highest number.

    A killed process or a full disk leaves an incomplete checkpoint, which
    `transformers.trainer_utils.get_last_checkpoint` returns and no Trainer can load.
    """
    if folder is None:
        return None
    numbered = [(p.name.removeprefix("checkpoint-"), p) for p in Path(folder).glob("checkpoint-*") if p.is_dir()]
    for _, path in sorted(((int(n), p) for n, p in numbered if n.isdecimal()), reverse=True):
        missing = _what_is_missing(path)
        if missing is None:
            return str(path)
        logger.warning(f"{path} is skipped, because it is incomplete: {missing}.")
    return None


def _what_is_missing(checkpoint: Path) -> str | None:
    try:
        TrainerState.load_from_json(str(checkpoint / _TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):
        return f"it has no readable {_TRAINER_STATE_NAME}"
    try:
        state = load_state(checkpoint)
    except ValueError:
        state = None  # resuming from it raises an error of its own
    # Each of the other processes writes its random state in its own time
    for rank in range(state["world_size"]) if state and state["world_size"] > 1 else ():
        if not zipfile.is_zipfile(checkpoint / f"rng_state_{rank}.pth"):
            return f"it has no readable rng_state_{rank}.pth"
    return None

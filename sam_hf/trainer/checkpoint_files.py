"""
What SAM adds to a checkpoint of Trainer, and which checkpoint of a folder is whole.

A checkpoint is Trainer's own plus `sam_state.json`: `version` of this format, the `method`, the number of processes
(`world_size`) that wrote it, and whether the method keeps `tensors`: those are in `sam_state.safetensors`, or in
`sam_state_RANK.safetensors` where processes differ. Without these files it is a checkpoint of plain Trainer, and
resumes as one.
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
# Trainer writes it last
_TRAINER_STATE_NAME = "trainer_state.json"


def save_state(folder: str | os.PathLike, method: str, world_size: int, has_tensors: bool) -> None:
    """Write `sam_state.json`: whole, or not at all."""
    path = Path(folder) / STATE_NAME
    state = {"version": _VERSION, "method": method, "world_size": world_size, "tensors": has_tensors}
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(state, indent=2))
    unfinished.replace(path)


def load_state(folder: str | os.PathLike) -> dict[str, Any] | None:
    """
    What `save_state` wrote; `None` in a checkpoint of plain Trainer.

    Raises:
        ValueError: the file is there, but not what `save_state` writes.
    """
    path = Path(folder) / STATE_NAME
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error
    if isinstance(state, dict) and state.get("version", _VERSION) != _VERSION:
        raise ValueError(f"{path} has version {state['version']!r}, and this sam_hf reads {_VERSION}")
    if not isinstance(state, dict) or not all(isinstance(state.get(key), kind) for key, kind in _KEYS.items()):
        raise ValueError(f"{path} lacks {', '.join(_KEYS)} or has something else there: {json.dumps(state)[:120]}")
    return state


def tensors_path(folder: str | os.PathLike, rank: int | None) -> Path:
    """The file of a method's tensors; that of one process where each has its own."""
    return Path(folder) / ("sam_state.safetensors" if rank is None else f"sam_state_{rank}.safetensors")


def save_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)  # a process may come here before the first has saved the model
    save_file({name: tensor.detach().cpu() for name, tensor in tensors.items()}, path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """
    Raises:
        ValueError: the file is not there, or damaged.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path} cannot be read ({error})") from error


def last_whole_checkpoint(folder: str | os.PathLike | None) -> str | None:
    """
    The checkpoint with the highest number that was written to its end.

    A process that is killed, or a disk that fills up, leaves one that `transformers.trainer_utils.get_last_checkpoint`
    would return and no Trainer can load.
    """
    if folder is None:
        return None
    numbered = [(p.name.removeprefix("checkpoint-"), p) for p in Path(folder).glob("checkpoint-*") if p.is_dir()]
    for _, path in sorted(((int(n), p) for n, p in numbered if n.isdecimal()), reverse=True):
        missing = _what_is_missing(path)
        if missing is None:
            return str(path)
        logger.warning(f"{path} is passed over: {missing}, so it was not written to its end.")
    return None


def _what_is_missing(checkpoint: Path) -> str | None:
    try:
        TrainerState.load_from_json(str(checkpoint / _TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):
        return f"it has no readable {_TRAINER_STATE_NAME}"
    try:
        state = load_state(checkpoint)
    except ValueError:
        state = None  # its own message comes when it is resumed from
    # The other processes write their generators at their own pace
    for rank in range(state["world_size"]) if state and state["world_size"] > 1 else ():
        if not zipfile.is_zipfile(checkpoint / f"rng_state_{rank}.pth"):
            return f"it has no readable rng_state_{rank}.pth"
    return None

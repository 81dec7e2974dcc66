"""
The files that SAM adds to a checkpoint of Trainer, and the search for the last complete checkpoint.

A checkpoint is Trainer's own plus, if the program has given one, the record of what determines the training
(`run.json`), and plus `sam_state.json`: the `version` of this format, the `method`, the number
of processes that wrote it (`world_size`), and whether the method keeps `tensors`. The tensors are in
`sam_state.safetensors`, or in `sam_state_RANK.safetensors` where processes differ. Without these files it is a
checkpoint of plain Trainer, and resumes as one.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer
from transformers.trainer_callback import TrainerState
from transformers.utils import logging

from ..arguments.schedules import method_class, uses_auto_radius
from ..update.gradients import is_fsdp
from ..update.model_structure import plain_name
from .method_lifecycle import MethodLifecycle

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object

STATE_NAME = "sam_state.json"
RECORD_NAME = "run.json"
_VERSION = 1
_KEYS = {"version": int, "method": str, "world_size": int, "tensors": bool}
# The last file of a checkpoint that Trainer writes
_TRAINER_STATE_NAME = "trainer_state.json"


def save_state(folder: str | os.PathLike, method: str, world_size: int, has_tensors: bool) -> None:
    """Write `sam_state.json`, either completely or not at all."""
    state = {"version": _VERSION, "method": method, "world_size": world_size, "tensors": has_tensors}
    _write(Path(folder) / STATE_NAME, state)


def save_record(folder: str | os.PathLike, record: Mapping[str, Any]) -> None:
    """Write `run.json`, either completely or not at all."""
    _write(Path(folder) / RECORD_NAME, record)


def load_record(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return what `save_record` wrote, or `None` if there is nothing that can be read."""
    try:
        record = json.loads((Path(folder) / RECORD_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(content, indent=2), encoding="utf-8")
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


def last_whole_checkpoint(
    folder: str | os.PathLike | None, accepts: Callable[[Path], bool] = lambda path: True
) -> str | None:
    """
    Return the complete checkpoint with the highest number.

    A killed process or a full disk leaves an incomplete checkpoint, which
    `transformers.trainer_utils.get_last_checkpoint` returns and no Trainer can load.

    Args:
        folder (`str`): the `output_dir` of the run.
        accepts (`Callable`, *optional*): returns whether a checkpoint is one of those looked for. Default: all are.
    """
    if folder is None:
        return None
    numbered = [(p.name.removeprefix("checkpoint-"), p) for p in Path(folder).glob("checkpoint-*") if p.is_dir()]
    for _, path in sorted(((int(n), p) for n, p in numbered if n.isdecimal()), reverse=True):
        if not accepts(path):
            continue
        missing = what_is_missing(path)
        if missing is None:
            return str(path)
        logger.warning(f"{path} is skipped, because it is incomplete: {missing}.")
    return None


def what_is_missing(checkpoint: str | os.PathLike, needs_optimizer: bool = True) -> str | None:
    """Return why a checkpoint cannot be resumed from, or `None` if it is complete."""
    checkpoint = Path(checkpoint)
    try:
        TrainerState.load_from_json(str(checkpoint / _TRAINER_STATE_NAME))
    except (OSError, ValueError, TypeError):
        return f"it has no readable {_TRAINER_STATE_NAME}"
    # A copy that was broken off, or a clone without `git lfs pull`
    for name in ("optimizer.pt", "scheduler.pt"):
        if (checkpoint / name).exists() and not zipfile.is_zipfile(checkpoint / name):
            return f"it has no readable {name}"
    # FSDP and DeepSpeed have names of their own
    if needs_optimizer and not any(checkpoint.glob("*optim*")) and not any(checkpoint.glob("global_step*")):
        return "it has no state of the optimizer, which save_only_model leaves out"
    try:
        state = load_state(checkpoint)
    except ValueError:
        state = None  # resuming from it raises an error of its own
    # Each of the other processes writes its random state in its own time
    for rank in range(state["world_size"]) if state and state["world_size"] > 1 else ():
        if not zipfile.is_zipfile(checkpoint / f"rng_state_{rank}.pth"):
            return f"it has no readable rng_state_{rank}.pth"
    return None


class CheckpointMixin(_Trainer):
    """
    Part of [`SAMMixin`].

    Attributes:
        run_record (`dict`, *optional*):
            What determines the training, of a program that wants it in every checkpoint.

    `train` is public. The other three methods are private to Trainer and have no public counterpart: the event
    `on_save` comes only after a checkpoint was pushed, and there is no event for loading or for a failed checkpoint.
    """

    sam_args: Any
    run_record: Mapping[str, Any] | None = None
    _sam_method: MethodLifecycle

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        if resume_from_checkpoint is True:  # without a complete checkpoint, Trainer raises its own error
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir) or True
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.run_record is not None and self.args.should_save:
            save_record(output_dir, self.run_record)
        if self.sam_args.sam_method == "none":
            return
        tensors = self._sam_method.state(self._parameter_names(), self.optimizer)
        if tensors and (self._own_state_rank() is not None or self.args.should_save):
            save_tensors(tensors_path(output_dir, self._own_state_rank()), tensors)
        if self.args.should_save:
            save_state(output_dir, self.sam_args.sam_method, self.args.world_size, bool(tensors))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        name = self.sam_args.sam_method
        if checkpoint is None or name == "none":
            return
        keeps_nothing = not (method_class(self.sam_args).keeps_state or uses_auto_radius(self.sam_args))
        try:
            state = load_state(checkpoint)
            if state is None or keeps_nothing or not state["tensors"] or state["method"] != name:
                return
            if state["world_size"] != self.args.world_size and not self._state_is_shared():
                logger.warning(
                    f"{checkpoint} was written by {state['world_size']} processes, and this run has "
                    f"{self.args.world_size}: the state of sam_method={name!r} starts from nothing."
                )
                return
            path = tensors_path(checkpoint, self._own_state_rank())
            self._sam_method.method(self.sam_args, self.model, self.optimizer)
            try:
                self._sam_method.load_state(load_tensors(path), self._parameter_names(), self.optimizer)
            except ValueError as error:
                raise ValueError(f"{path}: {error}") from error
        except ValueError as error:
            if not keeps_nothing:
                raise ValueError(
                    f"{error}. sam_method={name!r} cannot resume without it: restore the file, or delete the "
                    f"sam_state files of {checkpoint} to let the method's averages start from nothing."
                ) from error
            logger.warning(f"{error}. sam_method={name!r} keeps no state: training resumes without the file.")

    def _own_state_rank(self) -> int | None:
        """Return the rank of this process if the state of methods differs between processes, else `None`."""
        is_single = self.args.world_size <= 1
        return None if is_single or self._state_is_shared() else self.args.process_index

    def _state_is_shared(self) -> bool:
        """Return whether the state of the method is the same in every process."""
        method = method_class(self.sam_args)  # without a state of its own, only the step length is saved
        shared = self.sam_args.sam_sync_perturbation or method.state_is_shared or not method.keeps_state
        return shared and not is_fsdp(self.model_wrapped)

    def _parameter_names(self) -> dict[Tensor, str]:
        model: Any = self.model
        return {parameter: plain_name(name) for name, parameter in model.named_parameters()}

    def _save_checkpoint(self, *args, **kwargs) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except Exception:
            logger.error(
                f"The checkpoint of step {self.state.global_step} in {self.args.output_dir} is incomplete (the error "
                "below says why). Free some space or choose another output_dir, then continue with "
                "train(resume_from_checkpoint=True), which uses the last complete checkpoint."
            )
            raise

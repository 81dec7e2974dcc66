"""Checkpoints of a SAM run: what Trainer saves and loads, and `sam_state.json` beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import Trainer
from transformers.utils import logging

from ..arguments.schedules import method_class, uses_auto_radius
from ..update.gradients import is_fsdp
from ..update.perturbed_parameters import plain_name
from .checkpoint_files import last_whole_checkpoint, load_state, load_tensors, save_state, save_tensors, tensors_path
from .method_lifecycle import MethodLifecycle

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object


class CheckpointMixin(_Trainer):
    """
    Part of [`SAMMixin`].

    `train` is public. The other three methods are private to Trainer and have no public counterpart: the event
    `on_save` comes only after a checkpoint was pushed, and there is no event for loading or for a failed checkpoint.
    """

    sam_args: Any
    _sam_method: MethodLifecycle

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        if resume_from_checkpoint is True:  # without a complete checkpoint, Trainer raises its own error
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir) or True
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
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

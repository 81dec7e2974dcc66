"""Checkpoints of a SAM run: what Trainer saves and loads, `sam_state.json` with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import Trainer
from transformers.utils import logging

from .checkpoints import last_whole_checkpoint, load_state, save_state

logger = logging.get_logger(__name__)

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object


class CheckpointMixin(_Trainer):
    """
    Part of [`SAMMixin`].

    `train` is public. The other three methods are private to Trainer, and have no public counterpart: `on_save` comes
    after a checkpoint was pushed, no event comes with loading, and none with a checkpoint that failed.
    """

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        if resume_from_checkpoint is True:  # if none is whole, Trainer says so
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir) or True
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        method = self.sam_args.sam_method  # type: ignore[attr-defined]
        if self.args.should_save and method != "none":
            save_state(output_dir, method, self.args.world_size)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        method = self.sam_args.sam_method  # type: ignore[attr-defined]
        if checkpoint is None or method == "none":
            return
        try:
            load_state(checkpoint)
        except ValueError as error:
            logger.warning(f"{error}. sam_method={method!r} keeps no state: training resumes without the file.")

    def _save_checkpoint(self, *args, **kwargs) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except Exception:
            logger.error(
                f"The checkpoint of step {self.state.global_step} in {self.args.output_dir} was not written to its "
                "end (the error below says why). Make room or choose another output_dir, then go on with "
                "train(resume_from_checkpoint=True), which takes the last whole checkpoint."
            )
            raise

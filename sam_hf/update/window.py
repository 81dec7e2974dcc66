"""What all kinds of windows have in common, and the window of a plain update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..methods import Method
from .combining import reuse
from .runner import PassRunner


class Window:
    """
    One update. A window takes Trainer's micro-batches one by one and runs every pass that each of them completes.

    Args:
        batches (`Sequence`): the micro-batches of the update.

    Attributes:
        perturbation_ratio (`Tensor` or `None`): the share of the last epsilon that survived rounding, see
            [`~sam_hf.update.perturbation.Perturbation`].
    """

    perturbation_ratio: Tensor | None = None

    def __init__(self, batches: Sequence[dict[str, Any]]):
        self.size = len(batches)
        self.position = 0  # micro-batches so far, with the present one

    @property
    def is_complete(self) -> bool:
        """All micro-batches have arrived."""
        return self.position >= self.size

    @property
    def is_cut_short(self) -> bool:
        """Micro-batches are missing, and without them this is not the update that was asked for."""
        return not self.is_complete

    def step(self, runner: PassRunner, batch: dict[str, Any]) -> Tensor:
        """
        Take the next micro-batch, and run every pass that it completes.

        Returns:
            `Tensor`: the loss that Trainer logs for the micro-batch, detached.
        """
        raise NotImplementedError

    def abandon(self) -> None:
        """Leave the gradients so far in `p.grad`, as plain training does when a callback breaks an update off."""


class PlainWindow(Window):
    """
    One update of plain training.

    Args:
        batches (`Sequence`): the micro-batches of the update.
        method ([`~sam_hf.methods.Method`], *optional*): changes the gradient of the update, as looksam does between
            two SAM updates.
    """

    is_cut_short = False

    def __init__(self, batches: Sequence[dict[str, Any]], method: Method | None = None):
        super().__init__(batches)
        self._method = method

    def step(self, runner: PassRunner, batch: dict[str, Any]) -> Tensor:
        loss = runner.plain_step(batch)
        self.position += 1
        if self.is_complete and self._method is not None:
            reuse(self._method, runner)
        return loss

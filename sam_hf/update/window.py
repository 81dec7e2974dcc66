"""What all kinds of windows have in common, and the two kinds with one pass per micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..methods import Method, Point
from ..tensors.optimizers import first_moments, no_first_moment
from ..tensors.rounding import StochasticRounding
from .combining import reuse
from .perturbation import Perturbation
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
        reports (`Sequence[str]`, *optional*): the metrics that the update adds to, as one with ε = 0.
    """

    is_cut_short = False

    def __init__(self, batches: Sequence[dict[str, Any]], method: Method | None = None, reports: Sequence[str] = ()):
        super().__init__(batches)
        self._method = method
        self._reports = reports
        self._loss: Tensor | float = 0.0

    def step(self, runner: PassRunner, batch: dict[str, Any]) -> Tensor:
        loss = runner.plain_step(batch)
        self.position += 1
        if self._reports:
            self._loss = self._loss + loss
        if self.is_complete:
            if self._method is not None:
                reuse(self._method, runner)
            # Not 0 if the loss is not finite: the update is then left out of all means
            zero = self._loss - self._loss
            values = {"sam_rho": 0.0, "sam_perturbed_loss": self._loss, "sam_sharpness": zero}
            for name in self._reports:
                runner.means.add(name, values[name])
        return loss


class MomentumWindow(Window):
    """
    One update whose epsilon comes from the optimizer's first moment. Every micro-batch gets one pass, at w + ε.

    The weights are restored after each micro-batch, so that code that runs between two micro-batches sees w.

    Args:
        batches (`Sequence`): the micro-batches of the update.
        method ([`~sam_hf.methods.Method`]): turns the first moment into epsilon.
        radius (`float` or 0-dimensional `Tensor`): ρ of this update.
        optimizer (`torch.optim.Optimizer`): keeps the first moment.
        has_stepped (`bool`, *optional*, defaults to `False`): the optimizer has stepped, so it must have first
            moments by now.
        rounding ([`~sam_hf.tensors.rounding.StochasticRounding`], *optional*): rounds w + ε to bf16 and fp16 weights,
            in the same way for each micro-batch.
    """

    def __init__(
        self,
        batches: Sequence[dict[str, Any]],
        *,
        method: Method,
        radius: float | Tensor,
        optimizer: Any,
        has_stepped: bool = False,
        rounding: StochasticRounding | None = None,
    ):
        super().__init__(batches)
        self._method = method
        self._radius = radius
        self._optimizer = optimizer
        self._has_stepped = has_stepped
        self._rounding = rounding
        self._loss: Tensor | float = 0.0

    def step(self, runner: PassRunner, batch: dict[str, Any]) -> Tensor:
        """
        Take the next micro-batch. Return its loss at w + ε: this kind of update does not visit w.

        Raises:
            ValueError: the optimizer has stepped and keeps no first moment.
        """
        self.position += 1
        if hasattr(self._optimizer, "train") and callable(self._optimizer.train):
            self._optimizer.train()  # Trainer would do so inside the pass, when the weights are perturbed already
        moments = first_moments(self._optimizer, runner.perturbed)
        if self._has_stepped and not moments:
            raise ValueError(no_first_moment(self._optimizer))
        if self._rounding is not None:
            self._rounding.restart()
        with Perturbation(round_to=self._rounding) as perturbation:
            if moments:
                parameters = list(moments)
                with torch.no_grad():
                    ascent = self._method.ascent(list(moments.values()), Point(parameters, parameters))
                perturbation.add(parameters, ascent, self._radius)
            loss = runner.plain_step(batch)
            self.perturbation_ratio = perturbation.ratio
        self._loss = self._loss + loss
        if self.is_complete:
            runner.means.add("sam_rho", self._radius if moments else 0.0)
            runner.means.add("sam_perturbed_loss", self._loss)
            runner.means.add("sam_perturbation_ratio", self.perturbation_ratio)
        return loss

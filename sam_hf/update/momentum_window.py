"""The window of a method whose perturbation is known before the first pass (msam)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..methods import Method, Point
from ..tensors.first_moment import first_moments
from ..tensors.rounding import StochasticRounding
from .perturbation import Perturbation
from .runner import PassRunner
from .window import Window


class MomentumWindow(Window):
    """
    One update whose epsilon comes from the optimizer's first moment. Every micro-batch gets one pass, at w + ε.

    The weights are restored after each micro-batch, so that code that runs between two micro-batches sees w.

    Args:
        batches (`Sequence`): the micro-batches of the update.
        method ([`~sam_hf.methods.Method`]): turns the first moment into epsilon.
        radius (`float` or 0-dimensional `Tensor`): ρ of this update.
        optimizer (`torch.optim.Optimizer`): keeps the first moment.
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
        rounding: StochasticRounding | None = None,
    ):
        super().__init__(batches)
        self._method = method
        self._radius = radius
        self._optimizer = optimizer
        self._rounding = rounding
        self._loss: Tensor | float = 0.0

    def step(self, runner: PassRunner, batch: dict[str, Any]) -> Tensor:
        """Take the next micro-batch. Return its loss at w + ε: this kind of update does not visit w."""
        self.position += 1
        if hasattr(self._optimizer, "train") and callable(self._optimizer.train):
            self._optimizer.train()  # Trainer would do so inside the pass, when the weights are perturbed already
        moments = first_moments(self._optimizer, runner.perturbed)
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
            runner.means.add("sam_rho", self._radius)
            runner.means.add("sam_perturbed_loss", self._loss)
            runner.means.add("sam_perturbation_ratio", self.perturbation_ratio)
        return loss

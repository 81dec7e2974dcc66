"""Updates of one pass: at w + ε where ε is known before it, or plain ones that a method has a part in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..methods import Method, Point
from ..tensors.first_moment import first_moments
from ..tensors.rounding import StochasticRounding
from .perturbation import Perturbation
from .runner import Passes


class MomentumWindow:
    """
    One update of a method whose ε comes from the optimizer's first moment (msam): every micro-batch is passed over
    once, at w + ε. The weights come back after each, so that nobody between two micro-batches sees others than w.

    Args:
        batches (`Sequence`): the window's micro-batches.
        method ([`~sam_hf.methods.Method`]): what ε is made of.
        radius (`float` or 0-dimensional `Tensor`): ρ of this update.
        optimizer (`torch.optim.Optimizer`): whose first moment it is.
        rounding ([`~sam_hf.tensors.rounding.StochasticRounding`], *optional*): how w + ε is rounded to bf16 and fp16
            weights, the same for each micro-batch.
    """

    slices_batches = False

    def __init__(
        self,
        batches: Sequence[dict[str, Any]],
        *,
        method: Method,
        radius: float | Tensor,
        optimizer: Any,
        rounding: StochasticRounding | None = None,
    ):
        self.method = method
        self.radius = radius
        self.rounding = rounding
        self.perturbation_ratio: Tensor | None = None
        self._optimizer = optimizer
        self._size = len(batches)
        self._position = 0
        self._loss: Tensor | float = 0.0

    @property
    def is_complete(self) -> bool:
        return self._position >= self._size

    def step(self, passes: Passes, batch: dict[str, Any]) -> Tensor:
        """Take the next micro-batch. Returns its loss at w + ε."""
        self._position += 1
        if hasattr(self._optimizer, "train") and callable(self._optimizer.train):
            self._optimizer.train()  # Trainer would do so in the pass, when ε is there already
        moments = first_moments(self._optimizer, passes.perturbed)
        if self.rounding is not None:
            self.rounding.restart()
        with Perturbation(round_to=self.rounding) as perturbation:
            if moments:
                parameters = list(moments)
                with torch.no_grad():
                    ascent = self.method.ascent(list(moments.values()), Point(parameters, parameters))
                perturbation.add(parameters, ascent, self.radius)
            loss = passes.forward_backward(batch, batch, True)
            self.perturbation_ratio = perturbation.ratio
        self._loss = self._loss + loss
        if self.is_complete:
            passes.means.add("sam_rho", self.radius)
            passes.means.add("sam_perturbed_loss", self._loss)
            if perturbation.ratio is not None:
                passes.means.add("sam_perturbation_ratio", perturbation.ratio)
        return loss

    def abandon(self) -> None:
        """Gradients of the micro-batches so far are in `p.grad`, as plain training would leave them."""


class PlainWindow:
    """
    One update of plain training.

    Args:
        batches (`Sequence`): the window's micro-batches.
        method ([`~sam_hf.methods.Method`], *optional*): changes the gradient of plain updates between two of its own.
    """

    def __init__(self, batches: Sequence[dict[str, Any]], method: Method | None = None):
        self.method = method
        self._size = len(batches)
        self._position = 0

    @property
    def is_complete(self) -> bool:
        return self._position >= self._size

    def count(self) -> bool:
        """A micro-batch was passed over, by Trainer alone. Whether it was the last one."""
        self._position += 1
        return self.is_complete

"""How far the optimizer's last step went: the length that the radius of `sam_rho_schedule="auto"` is a share of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .lists import add, copies, local
from .norms import global_norm


class StepLength:
    """
    ‖w_t − w_{t−1}‖₂ over the parameters that an optimizer steps, measured around its `step`.

    The copy of the weights that this takes lives during the step alone, when neither the perturbation's copy nor
    activations do: the peak of a SAM update stays what it is. Nothing here waits for the device.

    Attributes:
        value (`Tensor` or `None`): 0-dimensional, in the units of the weights; `None` before the first step.
    """

    def __init__(self) -> None:
        self.value: Tensor | None = None
        self._before: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def before_step(self, optimizer: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._before = dict(zip(parameters, copies([local(p) for p in parameters]), strict=True))

    @torch.no_grad()
    def after_step(self, optimizer: Any) -> None:
        before, self._before = self._before, {}
        if before:
            moved = list(before.values())
            add(moved, list(before), -1)
            self.value = global_norm(moved, like=list(before))

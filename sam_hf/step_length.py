"""How far the optimizer's last step went: the length that the radius of `sam_rho_schedule="auto"` is a share of."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .norms import global_norm, local


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
        self._before = {parameter: local(parameter).clone() for parameter in parameters}

    @torch.no_grad()
    def after_step(self, optimizer: Any) -> None:
        before, self._before = self._before, {}
        for parameter, weight in before.items():
            weight.sub_(local(parameter))
        if before:
            self.value = global_norm(list(before.values()), like=list(before))

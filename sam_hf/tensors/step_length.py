"""The length of the optimizer's last step. The radius of `sam_rho_schedule="auto"` is a share of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .lists import add, copies, local
from .norms import global_norm


class StepLength:
    """
    Measures ‖w_t − w_{t−1}‖₂ over the parameters that an optimizer steps, around its `step`.

    This needs a copy of the weights, but only during the step. At that time there are no activations and no copy for
    the perturbation, so the peak memory of a SAM update does not grow. Nothing here waits for the device.

    Attributes:
        value: The length, a 0-dimensional tensor in the units of the weights; `None` before the first step.
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
            differences = list(before.values())
            add(differences, list(before), -1)
            self.value = global_norm(differences, like=list(before))

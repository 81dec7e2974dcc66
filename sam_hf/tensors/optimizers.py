"""What is read from an optimizer: the first moment that it keeps, and the length of its last step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .lists import add, copies, local
from .norms import global_norm

# SGD and Muon; Adam and most optimizers modelled on it, Lion, Adafactor with beta1
_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")


def first_moments(optimizer: Any, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """
    Return the first moment of each parameter that already has one. Before the first step, none has.

    Raises:
        ValueError: The optimizer has stepped and keeps no first moment, or only a quantised or projected one.
    """
    moments: dict[Tensor, Tensor] = {}
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        moment = next((state[name] for name in _FIRST_MOMENTS if isinstance(state.get(name), Tensor)), None)
        if moment is not None and moment.shape == parameter.shape and moment.is_floating_point():
            moments[parameter] = moment
        elif state:
            raise ValueError(_message(optimizer))
    return moments


def check_keeps_first_moment(optimizer: Any) -> None:
    """
    Check before the first step that the optimizer will keep a first moment.

    Raises:
        ValueError: It is SGD without momentum, Adafactor without beta1, or a schedule-free optimizer, which averages
            weights instead.
    """
    for group in optimizer.param_groups:
        no_momentum = group.get("momentum", 1) == 0 and "betas" not in group
        if no_momentum or group.get("beta1", 0.9) is None or "weight_lr_power" in group:
            raise ValueError(_message(optimizer))


def _message(optimizer: Any) -> str:
    inner = getattr(optimizer, "optimizer", optimizer)
    return (
        f"sam_method='msam' perturbs along the optimizer's first moment, but {type(inner).__name__} keeps none "
        f"({' or '.join(_FIRST_MOMENTS)}). Use AdamW, SGD with momentum (optim='sgd', optim_args='momentum=0.9'), or "
        "another sam_method."
    )


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

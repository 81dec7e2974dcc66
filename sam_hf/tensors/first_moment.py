"""The first moment (momentum) that an optimizer keeps of its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

# SGD and Muon; Adam and most optimizers modelled on it, Lion, Adafactor with beta1
_NAMES = ("momentum_buffer", "exp_avg")


def first_moments(optimizer: Any, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """
    Return the first moment of each parameter that already has one. Before the first step, none has.

    Raises:
        ValueError: The optimizer has stepped and keeps no first moment, or only a quantised or projected one.
    """
    moments: dict[Tensor, Tensor] = {}
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        moment = next((state[name] for name in _NAMES if isinstance(state.get(name), Tensor)), None)
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
        f"({' or '.join(_NAMES)}). Use AdamW, SGD with momentum (optim='sgd', optim_args='momentum=0.9'), or another "
        "sam_method."
    )

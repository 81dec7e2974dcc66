"""The first moment that an optimizer keeps of its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

# SGD and Muon; Adam and most of what is modelled on it, Lion, Adafactor with beta1
_NAMES = ("momentum_buffer", "exp_avg")


def first_moments(optimizer: Any, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """
    The first moment of each parameter that has one by now. None before the first step.

    Raises:
        ValueError: the optimizer has stepped, and keeps none, or one that is quantised or projected.
    """
    found: dict[Tensor, Tensor] = {}
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        moment = next((state[name] for name in _NAMES if isinstance(state.get(name), Tensor)), None)
        if moment is not None and moment.shape == parameter.shape and moment.is_floating_point():
            found[parameter] = moment
        elif state:
            raise ValueError(_message(optimizer))
    return found


def check_keeps_first_moment(optimizer: Any) -> None:
    """
    Raise `ValueError` where it is known before the first step that the optimizer will keep none: SGD without momentum,
    Adafactor without beta1, and schedule-free optimizers, which average weights instead.
    """
    for group in optimizer.param_groups:
        without = group.get("momentum", 1) == 0 and "betas" not in group
        if without or group.get("beta1", 0.9) is None or "weight_lr_power" in group:
            raise ValueError(_message(optimizer))


def _message(optimizer: Any) -> str:
    inner = getattr(optimizer, "optimizer", optimizer)
    return (
        f"sam_method='msam' perturbs along the optimizer's first moment, and {type(inner).__name__} keeps none of "
        f"{' or '.join(_NAMES)}. Use AdamW, or SGD with momentum (optim='sgd', optim_args='momentum=0.9'), or another "
        "sam_method."
    )

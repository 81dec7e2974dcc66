"""What is read from an optimizer: the first moment that it keeps, and the length of its last step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn

from .lists import add, copies, is_sharded, local
from .norms import global_norm

# SGD and Muon; Adam and most optimizers modelled on it, Lion, Adafactor with beta1
_FIRST_MOMENTS = ("momentum_buffer", "exp_avg")
# Where wrappers keep the optimizer inside them: timm's Lookahead, that of pytorch_optimizer and many others, and SAM
_INSIDE = ("_base_optimizer", "optimizer", "base_optimizer")
# Packages whose optimizers keep quantised moments or averages of the weights
_UNREADABLE = {"bitsandbytes", "torchao", "schedulefree"}


def inside_accelerate(optimizer: Any) -> Any:
    """Return the optimizer inside accelerate's wrapper, or `optimizer` itself if it has none."""
    return optimizer.optimizer if isinstance(optimizer, AcceleratedOptimizer) else optimizer


def first_moments(optimizer: Any, parameters: Sequence[Tensor]) -> dict[Tensor, Tensor]:
    """
    Return the first moment of each parameter that already has one. Before the first step, none has.

    Raises:
        ValueError: The optimizer has stepped and keeps no first moment, or only a quantised or projected one.
    """
    *wrappers, innermost = _layers(optimizer)
    moments: dict[Tensor, Tensor] = {}
    for parameter in parameters:
        states = [getattr(layer, "state", {}).get(parameter, {}) for layer in (*wrappers, innermost)]
        kept = [state[name] for state in states for name in _FIRST_MOMENTS if name in state]
        moment = next((moment for moment in kept if _is_whole(moment, parameter)), None)
        if moment is not None:
            moments[parameter] = moment
        elif states[-1]:
            raise ValueError(no_first_moment(optimizer))
    return moments


def check_keeps_first_moment(optimizer: Any) -> None:
    """
    Check before the first step that the optimizer will keep a first moment.

    Raises:
        ValueError: It is SGD without momentum, Adafactor without beta1, a schedule-free optimizer, which averages
            weights instead, or one that quantises (8-bit, 4-bit) or projects (GaLore, APOLLO) its moments.
    """
    modules = {base.__module__.partition(".")[0] for layer in _layers(optimizer) for base in type(layer).__mro__}
    if modules & _UNREADABLE:
        raise ValueError(no_first_moment(optimizer))
    for group in optimizer.param_groups:
        no_momentum = group.get("momentum", 1) == 0 and "betas" not in group
        is_projected = "update_proj_gap" in group
        if no_momentum or is_projected or group.get("beta1", 0.9) is None or "weight_lr_power" in group:
            raise ValueError(no_first_moment(optimizer))


def no_first_moment(optimizer: Any) -> str:
    """Return the message for an optimizer that keeps no first moment that can be read."""
    *_, innermost = _layers(optimizer)
    cls = type(innermost)
    return (
        f"sam_method='msam' perturbs along the optimizer's first moment, but {cls.__module__}.{cls.__name__} keeps "
        f"none in the precision and shape of the weights ({' or '.join(_FIRST_MOMENTS)}). Use optim='adamw_torch', or "
        "optim='sgd' with optim_args='momentum=0.9', or another sam_method."
    )


def _layers(optimizer: Any) -> Iterator[Any]:
    """Return the optimizer and those that it wraps, one inside the other."""
    layer = inside_accelerate(optimizer)
    while layer is not None:
        yield layer
        inside = (vars(layer).get(name) for name in _INSIDE)
        layer = next((one for one in inside if hasattr(one, "param_groups") and hasattr(one, "state")), None)


def _is_whole(moment: Any, parameter: Tensor) -> bool:
    """Return whether the moment is neither quantised, which is a class of its own or integers, nor projected."""
    is_plain = type(moment) in (Tensor, nn.Parameter) or is_sharded(moment)
    return is_plain and moment.shape == parameter.shape and moment.is_floating_point()


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

"""What methods keep from one update to the next: float32 or wider, and free of fp16's loss scale."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..norms import local, wide
from .base import Method, Point


def unscaled(grads: Sequence[Tensor], loss_scale: Tensor | None) -> list[Tensor]:
    """`grads` in float32 or wider, without the loss scale. May overwrite `grads`."""
    wide_grads = [grad.to(wide(grad.dtype)) for grad in grads]
    if loss_scale is not None:
        for grad in wide_grads:
            local(grad).div_(loss_scale.to(grad.device))
    return wide_grads


def kept(tensors: dict[Tensor, Tensor], parameter: Tensor) -> Tensor:
    """This process's part of what is kept for `parameter`; zeros at first."""
    if parameter not in tensors:
        weight = local(parameter)
        tensors[parameter] = torch.zeros_like(weight, dtype=wide(weight.dtype), requires_grad=False)
    return tensors[parameter]


def moving_average(
    method: Method, name: str, grads: Sequence[Tensor], at: Point, finite: Tensor, share: float
) -> list[Tensor]:
    """
    m ← m + share · (g − m), and m = g the first time, kept as `method.tensors[name]`. m stays as it was where the
    gradient is not `finite`.

    Args:
        grads: g, without the loss scale; zeros where it is not finite.

    Returns:
        `list[Tensor]`: g − m with m of before, this process's parts.
    """
    started = method.numbers.setdefault(f"{name}_started", torch.zeros((), dtype=torch.bool, device=finite.device))
    averages = method.tensors.setdefault(name, {})
    changes = []
    for parameter, grad in zip(at.parameters, grads, strict=True):
        average = kept(averages, parameter)
        change = local(grad).to(average.dtype) - average
        one = torch.ones((), dtype=average.dtype, device=average.device)
        step = torch.where(started.to(one.device), one * share, one) * finite.to(one.device)
        average += step * change
        changes.append(change)
    method.numbers[f"{name}_started"] = started | finite
    return changes

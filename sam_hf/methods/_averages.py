"""What methods keep from one update to the next: float32 or wider, and free of fp16's loss scale."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors.lists import CHUNK_ELEMENTS, cast, divide, local, local_groups, multiply, wide
from ._base import Method, Point


def unscaled(grads: Sequence[Tensor], loss_scale: Tensor | None) -> list[Tensor]:
    """`grads` in float32 or wider, without the loss scale. May overwrite `grads`."""
    wide_grads = cast(grads)
    if loss_scale is not None:
        divide(wide_grads, loss_scale)
    return wide_grads


def state_tensor(tensors: dict[Tensor, Tensor], parameter: Tensor) -> Tensor:
    """This process's part of what is kept for `parameter`; zeros at first."""
    if parameter not in tensors:
        weight = local(parameter)
        tensors[parameter] = torch.zeros_like(weight, dtype=wide(weight.dtype), requires_grad=False)
    return tensors[parameter]


def moving_average(
    method: Method,
    name: str,
    grads: Sequence[Tensor],
    at: Point,
    finite: Tensor,
    share: float,
    taken_off: float = 0.0,
) -> list[Tensor]:
    """
    m ← m + share · (g − m), and m = g the first time, kept as `method.tensors[name]`. m stays as it was where the
    gradient is not `finite`.

    Args:
        grads: g in float32 or wider, without the loss scale; zeros where it is not finite.
        taken_off: this times m, as it was before, is subtracted from `grads`.

    Returns:
        `list[Tensor]`: m, this process's parts.
    """
    started = method.numbers.setdefault(f"{name}_started", torch.zeros((), dtype=torch.bool, device=finite.device))
    widest = functools.reduce(torch.promote_types, {grad.dtype for grad in grads}, torch.float32)
    one = torch.ones((), dtype=widest, device=finite.device)
    step = torch.where(started, one * share, one) * finite
    tensors = method.tensors.setdefault(name, {})
    averages = [state_tensor(tensors, parameter) for parameter in at.parameters]
    for some, their_averages in local_groups(grads, averages, at_most=CHUNK_ELEMENTS):
        changes = torch._foreach_sub(some, their_averages)
        if taken_off:
            # g − σ m = (1 − σ) g + σ (g − m)
            torch._foreach_mul_(some, 1 - taken_off)
            torch._foreach_add_(some, changes, alpha=taken_off)
        multiply(changes, step)
        torch._foreach_add_(their_averages, changes)
    method.numbers[f"{name}_started"] = started | finite
    return averages

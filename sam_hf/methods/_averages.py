"""What methods keep from one update to the next: tensors in float32 or wider, without fp16's loss scale."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors.lists import CHUNK_ELEMENTS, cast, divide, local, local_chunks, multiply, sum_dtype
from ._base import Method, Point


def unscaled(grads: Sequence[Tensor], loss_scale: Tensor | None) -> list[Tensor]:
    """Return `grads` in float32 or wider, without the loss scale. May overwrite `grads`."""
    wide_grads = cast(grads)
    if loss_scale is not None:
        divide(wide_grads, loss_scale)
    return wide_grads


def state_tensor(tensors: dict[Tensor, Tensor], parameter: Tensor) -> Tensor:
    """Return the local shard of what is kept for `parameter`; zeros at first."""
    if parameter not in tensors:
        weight = local(parameter)
        tensors[parameter] = torch.zeros_like(weight, dtype=sum_dtype(weight.dtype), requires_grad=False)
    return tensors[parameter]


def moving_average(
    method: Method, name: str, grads: Sequence[Tensor], at: Point, finite: Tensor, share: float, subtract: float = 0.0
) -> list[Tensor]:
    """
    Update the moving average `method.tensors[name]`: m ← m + share · (g − m), and m = g the first time. If the
    gradient is not `finite`, m does not change.

    Args:
        grads: g in float32 or wider, without the loss scale; zeros if it is not finite.
        subtract: `subtract` · m, with m before the update, is subtracted from `grads` in place.

    Returns:
        The local shards of m.
    """
    started = method.numbers.setdefault(f"{name}_started", torch.zeros((), dtype=torch.bool, device=finite.device))
    widest = functools.reduce(torch.promote_types, {grad.dtype for grad in grads}, torch.float32)
    one = torch.ones((), dtype=widest, device=finite.device)
    step = torch.where(started, one * share, one) * finite
    tensors = method.tensors.setdefault(name, {})
    averages = [state_tensor(tensors, parameter) for parameter in at.parameters]
    for gradients, means in local_chunks(grads, averages, max_elements=CHUNK_ELEMENTS):
        changes = torch._foreach_sub(gradients, means)
        if subtract:
            # g − σ m = (1 − σ) g + σ (g − m)
            torch._foreach_mul_(gradients, 1 - subtract)
            torch._foreach_add_(gradients, changes, alpha=subtract)
        multiply(changes, step)
        torch._foreach_add_(means, changes)
    method.numbers[f"{name}_started"] = started | finite
    return averages

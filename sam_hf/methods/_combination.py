"""Update gradients made of g and s: linear combinations whose coefficients stay on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors.lists import CHUNK_ELEMENTS, add, cast, copy, local_groups, multiply
from ._direction import clear_if_not_finite


def ratio(numerator: Tensor, denominator: Tensor, finite: Tensor) -> Tensor:
    """numerator/denominator; 0 where the denominator is 0 or something is not `finite`."""
    safe = finite & (denominator > 0)
    return torch.where(safe, numerator / torch.where(safe, denominator, torch.ones_like(denominator)), 0)


def add_scaled(s: Sequence[Tensor], share_of_s: Tensor, g: Sequence[Tensor], share_of_g: Tensor) -> None:
    """s ← share_of_s · s + share_of_g · g, where g is not finite and its share is 0 too. Overwrites `g`."""
    clear_if_not_finite(g, share_of_g != 0)
    for targets, gradients in local_groups(s, g, at_most=CHUNK_ELEMENTS):
        # Rounded to bf16 once: shares of both signs cancel much of s and g
        exact = cast(targets)
        others = cast(gradients)
        multiply(exact, share_of_s)
        multiply(others, share_of_g)
        add(exact, others)
        if exact[0] is not targets[0]:
            copy(targets, exact)

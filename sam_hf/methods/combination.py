"""Update gradients made of g and s: linear combinations whose coefficients stay on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..norms import local, wide


def ratio(numerator: Tensor, denominator: Tensor, finite: Tensor) -> Tensor:
    """numerator/denominator; 0 where the denominator is 0 or something is not `finite`."""
    safe = finite & (denominator > 0)
    return torch.where(safe, numerator / torch.where(safe, denominator, torch.ones_like(denominator)), 0)


def add_scaled(s: Sequence[Tensor], share_of_s: Tensor, g: Sequence[Tensor], share_of_g: Tensor) -> None:
    """s ← share_of_s · s + share_of_g · g, where g is not finite and its share is 0 too."""
    for target, gradient in zip(s, g, strict=True):
        part, dtype = local(target), wide(target.dtype)
        other = local(gradient).to(dtype) * share_of_g.to(part.device, dtype)
        other.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)
        # Rounded to bf16 once: shares of both signs cancel much of s and g
        exact = part if part.dtype == dtype else part.to(dtype)
        exact.mul_(share_of_s.to(part.device, dtype)).add_(other)
        if exact is not part:
            part.copy_(exact)

"""Linear combinations of g and s whose coefficients stay on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors.lists import CHUNK_ELEMENTS, add, cast, copy, local_chunks, multiply
from ._direction import clear_if_not_finite


def ratio(numerator: Tensor, denominator: Tensor, finite: Tensor) -> Tensor:
    """Return numerator/denominator, and 0 if the denominator is 0 or something is not `finite`."""
    safe = finite & (denominator > 0)
    return torch.where(safe, numerator / torch.where(safe, denominator, torch.ones_like(denominator)), 0)


def add_scaled(s: Sequence[Tensor], share_of_s: Tensor, g: Sequence[Tensor], share_of_g: Tensor) -> None:
    """Compute s ← share_of_s · s + share_of_g · g. If g is not finite, its share must be 0. Overwrites `g`."""
    clear_if_not_finite(g, share_of_g != 0)
    for targets, gradients in local_chunks(s, g, max_elements=CHUNK_ELEMENTS):
        # Round to bf16 only once: shares of opposite signs cancel much of s and g
        exact = cast(targets)
        others = cast(gradients)
        multiply(exact, share_of_s)
        multiply(others, share_of_g)
        add(exact, others)
        if exact[0] is not targets[0]:
            copy(targets, exact)

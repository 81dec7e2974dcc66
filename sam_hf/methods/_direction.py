"""Directions of length one: the dual of a gradient in the p-norm, or any vector by its own norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors.lists import CHUNK_ELEMENTS, cast, clear_unless, local, local_groups, multiply
from ..tensors.norms import global_norm
from ._base import Ascent


def dual_direction(grads: list[Tensor], p: float = 2.0) -> Ascent:
    r"""
    The maximiser of ⟨ε, g⟩ over ‖ε‖_p ≤ 1 (arXiv 2010.01412, equation 2), with 1/p + 1/q = 1:

    ε̂ = sign(g) |g|^{q−1} / (‖g‖_q^q)^{1/p};  p = 2: g/‖g‖₂;  p = ∞: sign(g).

    Overwrites `grads`.
    """
    norm = global_norm(grads)
    finite = norm.isfinite()
    clear_if_not_finite(grads, finite)
    if p == 2:
        return Ascent(grads, _reciprocal(norm, finite), norm, finite)
    if p == torch.inf:
        torch._foreach_sign_([local(grad) for grad in grads])
        return Ascent(grads, finite.to(norm.dtype), norm, finite)
    # |g|^q underflows for small g and q large (p near 1), so g is divided by max|g| first: it cancels
    q = p / (p - 1)
    inverse_largest = _reciprocal(global_norm(grads, torch.inf), finite)
    ratios = cast(grads)
    multiply(ratios, inverse_largest)
    dual_norm = global_norm(ratios, q)
    for (some,) in local_groups(ratios, at_most=CHUNK_ELEMENTS):
        signs = torch._foreach_sign(some)
        torch._foreach_abs_(some)
        torch._foreach_pow_(some, q - 1)
        torch._foreach_mul_(some, signs)
    return Ascent(ratios, _reciprocal(dual_norm.pow(q - 1), finite), norm, finite)


def normalized(directions: list[Tensor], norm: Tensor, finite: Tensor) -> Ascent:
    """ε̂ = d/‖d‖₂ for directions d made of a gradient with this `norm`; 0 where the gradient is not `finite`."""
    return Ascent(directions, _reciprocal(global_norm(directions), finite), norm, finite)


def clear_if_not_finite(grads: Sequence[Tensor], finite: Tensor) -> None:
    """Make `grads` 0 where one of them is not `finite`: what they are multiplied by then is 0, and 0 · inf is NaN."""
    # Reading `finite` is free on the CPU; on an accelerator it would stall the host, and one more pass is cheaper
    if finite.device.type != "cpu" or not finite:
        clear_unless(grads, finite)


def _reciprocal(norm: Tensor, finite: Tensor) -> Tensor:
    """1/norm, and 0 where the norm is 0 or not finite."""
    safe = finite & (norm > 0)
    return torch.where(safe, 1 / torch.where(safe, norm, torch.ones_like(norm)), torch.zeros_like(norm))

"""Perturbation directions of length one: the dual of a gradient in the p-norm, or any vector divided by its norm."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..tensors.lists import CHUNK_ELEMENTS, cast, clear_unless, local, local_chunks, multiply
from ..tensors.norms import global_norm
from ._base import Ascent


def dual_direction(grads: list[Tensor], p: float = 2.0) -> Ascent:
    r"""
    Return the maximiser of ⟨ε, g⟩ over ‖ε‖_p ≤ 1 (arXiv 2010.01412, equation 2), with 1/p + 1/q = 1:

    ε̂ = sign(g) |g|^{q−1} / (‖g‖_q^q)^{1/p};  p = 2: g/‖g‖₂;  p = ∞: sign(g).

    Overwrites `grads`.
    """
    norm, finite = checked_norm(grads)
    if p == 2:
        return Ascent(grads, _reciprocal(norm, finite), norm, finite)
    if p == torch.inf:
        torch._foreach_sign_([local(grad) for grad in grads])
        return Ascent(grads, finite.to(norm.dtype), norm, finite)
    # |g|^q underflows for small g and large q (p near 1). So g is divided by max|g| first; this factor cancels
    q = p / (p - 1)
    inverse_largest = _reciprocal(global_norm(grads, torch.inf), finite)
    ratios = cast(grads)
    multiply(ratios, inverse_largest)
    dual_norm = global_norm(ratios, q)
    for (chunk,) in local_chunks(ratios, max_elements=CHUNK_ELEMENTS):
        signs = torch._foreach_sign(chunk)
        torch._foreach_abs_(chunk)
        torch._foreach_pow_(chunk, q - 1)
        torch._foreach_mul_(chunk, signs)
    return Ascent(ratios, _reciprocal(dual_norm.pow(q - 1), finite), norm, finite)


def ascent_along(directions: list[Tensor], grad_norm: Tensor, finite: Tensor) -> Ascent:
    """Return ε̂ = d/‖d‖₂ for directions d made from a gradient with `grad_norm`; 0 if that gradient is not `finite`."""
    return Ascent(directions, _reciprocal(global_norm(directions), finite), grad_norm, finite)


def checked_norm(grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return ‖g‖₂ and whether it is finite. If it is not, set `grads` to 0 in place."""
    norm = global_norm(grads)
    finite = norm.isfinite()
    clear_if_not_finite(grads, finite)
    return norm, finite


def clear_if_not_finite(grads: Sequence[Tensor], finite: Tensor) -> None:
    """Set `grads` to 0 if they are not `finite`. They are multiplied by 0 later, and 0 · inf would be NaN."""
    # Reading `finite` is free on the CPU. On an accelerator the host would wait, and clearing always is cheaper
    if finite.device.type != "cpu" or not finite:
        clear_unless(grads, finite)


def _reciprocal(norm: Tensor, finite: Tensor) -> Tensor:
    """Return 1/norm, and 0 where the norm is 0 or not finite."""
    safe = finite & (norm > 0)
    return torch.where(safe, 1 / torch.where(safe, norm, torch.ones_like(norm)), torch.zeros_like(norm))

"""
What a method is: plain torch, gradients in, perturbation out. Methods know nothing of Trainer, passes or processes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..norms import global_norm, local, wide


@dataclass
class Ascent:
    """
    The perturbation ε = ρ · `scale` · `directions`, a vector of norm ρ, before ρ is known.

    Attributes:
        directions: one tensor a parameter, of the parameter's shape.
        scale: 0-dimensional; 0 where there is no perturbation (g = 0, or g is not finite).
        norm: ‖g‖₂, 0-dimensional, in the units of the gradients that came in.
        finite: 0-dimensional bool: every element of g is finite.
    """

    directions: list[Tensor]
    scale: Tensor
    norm: Tensor
    finite: Tensor


class Method(ABC):
    """
    How a training method perturbs the weights.

    A subclass is one file in this folder with its equations, paper and defaults, and one line in `METHODS`.

    Args:
        p (`float`, *optional*, defaults to `2.0`): order of the perturbation's norm.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    citation: ClassVar[str]
    default_rho: ClassVar[float]

    def __init__(self, p: float = 2.0):
        self.p = p

    @abstractmethod
    def ascent(self, grads: list[Tensor], weights: Sequence[Tensor]) -> Ascent:
        """
        The perturbation that the ascent gradient asks for.

        Args:
            grads: ascent gradients g, one a perturbed parameter, in any common scale (a loss scale cancels). They are
                the method's to overwrite.
            weights: the parameters at w, to read.
        """


def dual_direction(grads: list[Tensor], p: float) -> Ascent:
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
        for grad in grads:
            local(grad).sign_()
        return Ascent(grads, finite.to(norm.dtype), norm, finite)
    # |g|^q underflows for small g and q large (p near 1), so g is divided by max|g| first: it cancels
    q = p / (p - 1)
    inverse_largest = _reciprocal(global_norm(grads, torch.inf), finite)
    ratios = [grad.to(wide(grad.dtype)) for grad in grads]
    for ratio in ratios:
        local(ratio).mul_(inverse_largest.to(ratio.device))
    dual_norm = global_norm(ratios, q)
    for ratio in ratios:
        part = local(ratio)
        part.copy_(part.sign() * part.abs().pow(q - 1))
    return Ascent(ratios, _reciprocal(dual_norm.pow(q - 1), finite), norm, finite)


def clear_if_not_finite(grads: list[Tensor], finite: Tensor) -> None:
    """Make `grads` safe to multiply by 0 where one of them is not finite (0 · inf is NaN)."""
    # Reading `finite` is free on the CPU; on an accelerator it would stall the host, and one more pass is cheaper
    if finite.device.type == "cpu" and finite:
        return
    for grad in grads:
        local(grad).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)


def _reciprocal(norm: Tensor, finite: Tensor) -> Tensor:
    """1/norm, and 0 where the norm is 0 or not finite."""
    safe = finite & (norm > 0)
    return torch.where(safe, 1 / torch.where(safe, norm, torch.ones_like(norm)), torch.zeros_like(norm))

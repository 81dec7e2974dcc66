"""The update gradient u of methods that make it of g and s, the same in every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..methods import Method, Point, Products
from ..tensors.lists import add
from ..tensors.norms import global_dot, global_norm
from .gradients import dense, is_fsdp
from .runner import Passes


def combine(
    method: Method, ascent_gradient: dict[Tensor, Tensor], leftover: dict[Tensor, Tensor], passes: Passes
) -> None:
    """
    Turn the descent gradients in `p.grad`, reduced over processes by now, into u.

    Parameters that ε does not cover keep u = s, and those without a descent gradient are not stepped.

    Args:
        ascent_gradient: g of the whole update by parameter.
        leftover: what `p.grad` held before the window's first pass: added to u as it is.
    """
    parameters = _stepped(passes)
    s: list[Any] = [p.grad for p in parameters]
    g = _of(parameters, ascent_gradient)
    if not (passes.sync_perturbation or is_fsdp(passes.model)):
        g = passes.average(g)
    earlier = _of(parameters, leftover) if leftover else []
    if earlier and not is_fsdp(passes.model):
        earlier = passes.average(earlier)
    scale = passes.loss_scale()
    with torch.no_grad():
        if earlier:
            add(s, earlier, -1)
        products = _products(g, s)
        passes.means.add("sam_grad_cosine", products.gs / (products.gg.sqrt() * products.ss.sqrt()))
        method.combine(g, s, products, Point(parameters, parameters, loss_scale=scale))
        if earlier:
            add(s, earlier)


def reuse(method: Method, passes: Passes) -> None:
    """Change the plain gradients in `p.grad`, reduced over processes by now, as the method does between updates."""
    parameters = _stepped(passes)
    grads: list[Any] = [p.grad for p in parameters]
    with torch.no_grad():
        method.reuse(grads, Point(parameters, parameters, loss_scale=passes.loss_scale()))


def _stepped(passes: Passes) -> list[nn.Parameter]:
    """The perturbed parameters with a gradient, which is dense from here on."""
    parameters = [p for p in passes.perturbed if p.grad is not None]
    grads: list[Any] = [p.grad for p in parameters]
    for parameter, grad in zip(parameters, dense(grads), strict=True):
        parameter.grad = grad
    return parameters


def _of(parameters: Sequence[nn.Parameter], gradients: dict[Tensor, Tensor]) -> list[Tensor]:
    """Theirs among `gradients`, zeros for those without."""
    return dense([gradients[p] if p in gradients else torch.zeros_like(p) for p in parameters])


def _products(g: Sequence[Tensor], s: Sequence[Tensor]) -> Products:
    gs, gg, ss = global_dot(g, s), global_norm(g).square(), global_norm(s).square()
    return Products(gs, gg, ss, gg.isfinite() & ss.isfinite())

"""The update gradient u of methods that make it of g and s, the same in every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .gradients import dense
from .methods import Method, Point, Products
from .norms import global_dot
from .passes import Passes


def combine(method: Method, ascent_gradient: dict[Tensor, Tensor], passes: Passes, is_shared: bool) -> None:
    """
    Turn the descent gradients in `p.grad`, reduced over processes by now, into u.

    Parameters that ε does not cover keep u = s, and those without a descent gradient are not stepped.

    Args:
        ascent_gradient: g of the whole update by parameter.
        is_shared: it is the mean over processes already.
    """
    parameters = _stepped(passes)
    s: list[Any] = [p.grad for p in parameters]
    g = [ascent_gradient[p] if p in ascent_gradient else torch.zeros_like(p) for p in parameters]
    if not is_shared:
        g = passes.average(g)
    products = _products(g, s)
    scale = passes.loss_scale()
    passes.means.add("sam_grad_cosine", products.gs / (products.gg * products.ss).sqrt())
    with torch.no_grad():
        method.combine(g, s, products, Point(parameters, parameters, loss_scale=scale))


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


def _products(g: Sequence[Tensor], s: Sequence[Tensor]) -> Products:
    gs, gg, ss = global_dot(g, s), global_dot(g, g), global_dot(s, s)
    return Products(gs, gg, ss, gg.isfinite() & ss.isfinite())

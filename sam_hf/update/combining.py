"""The update gradient u of methods that combine g and s. It is the same in every process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..methods import Method, Point, Products
from ..tensors.lists import add
from ..tensors.norms import global_dot, global_norm
from .gradients import dense, is_fsdp
from .runner import PassRunner


def combine(
    method: Method,
    ascent_gradient: dict[Tensor, Tensor],
    leftover: dict[Tensor, Tensor],
    runner: PassRunner,
    averaged: bool,
) -> None:
    """
    Turn the descent gradients in `p.grad`, which are reduced over processes by now, into the update gradient u.

    Parameters that epsilon does not cover keep u = s. Parameters without a descent gradient are not stepped.

    Args:
        method: combines g and s.
        ascent_gradient: g of the whole update, by parameter.
        leftover: the content of `p.grad` before the window's first pass. It is added to u unchanged.
        averaged: g is already a mean over processes.
    """
    parameters = _stepped(runner)
    s: list[Any] = [p.grad for p in parameters]
    g = _select(parameters, ascent_gradient)
    if not averaged:
        g = runner.average(g)
    earlier = _select(parameters, leftover) if leftover else []
    if earlier and not is_fsdp(runner.model):
        earlier = runner.average(earlier)
    with torch.no_grad():
        if earlier:
            add(s, earlier, -1)
        products = _products(g, s)
        runner.means.add("sam_grad_cosine", products.gs / (products.gg.sqrt() * products.ss.sqrt()))
        method.combine(g, s, products, Point(parameters, parameters, loss_scale=runner.loss_scale()))
        if earlier:
            add(s, earlier)


def reuse(method: Method, runner: PassRunner) -> None:
    """Let the method change the plain gradients in `p.grad`, which are reduced over processes by now."""
    parameters = _stepped(runner)
    grads: list[Any] = [p.grad for p in parameters]
    with torch.no_grad():
        method.reuse(grads, Point(parameters, parameters, loss_scale=runner.loss_scale()))


def _stepped(runner: PassRunner) -> list[nn.Parameter]:
    """Return the perturbed parameters that have a gradient, and make their gradients dense."""
    parameters = [p for p in runner.perturbed if p.grad is not None]
    grads: list[Any] = [p.grad for p in parameters]
    for parameter, grad in zip(parameters, dense(grads), strict=True):
        parameter.grad = grad
    return parameters


def _select(parameters: Sequence[nn.Parameter], gradients: dict[Tensor, Tensor]) -> list[Tensor]:
    """Return the gradients of these parameters; zeros where there is none."""
    return dense([gradients[p] if p in gradients else torch.zeros_like(p) for p in parameters])


def _products(g: Sequence[Tensor], s: Sequence[Tensor]) -> Products:
    gs, gg, ss = global_dot(g, s), global_norm(g).square(), global_norm(s).square()
    return Products(gs, gg, ss, gg.isfinite() & ss.isfinite())

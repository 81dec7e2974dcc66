"""Derivatives of the loss of one batch: its gradient, and products with its Hessian by double backward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..update.gradients import dense


def first_order(value: Tensor, weights: Sequence[nn.Parameter], create_graph: bool = False) -> list[Tensor]:
    """
    The gradient, one tensor a weight; zeros where the loss does not depend on it.

    Args:
        value: the loss, 0-dimensional.
        create_graph: it is to be differentiated again.
    """
    gradient = torch.autograd.grad(
        value, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dense(gradient)


def second_order(
    gradient: Sequence[Tensor], weights: Sequence[nn.Parameter], vector: Sequence[Tensor], again: bool = False
) -> Sequence[Tensor]:
    """
    The product of the Hessian and `vector`.

    Args:
        gradient: of `first_order`, with its graph.
        vector: one tensor a weight.
        again: another product of the same gradient follows.
    """
    pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
    if not pairs:  # the loss is linear
        return [torch.zeros_like(weight) for weight in weights]
    products = torch.autograd.grad(
        [g for g, _ in pairs],
        weights,
        [v for _, v in pairs],
        retain_graph=again,
        allow_unused=True,
        materialize_grads=True,
    )
    return dense(products)

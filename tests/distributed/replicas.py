"""A naive version of SAM over replicas: it trains in one process on the data of each rank of a data-parallel run."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from torch import nn

LEARNING_RATE = 0.05
RHO = 0.3

# [update][rank][micro-batch]: the inputs of one forward pass
Windows = list[list[list[dict[str, Any]]]]
# Pairs of a share of the window's loss and the inputs of this share, which is a mean over them
Group = list[tuple[float, dict[str, Any]]]


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def dealt(data: list[dict[str, Any]], ranks: int, micro_batch: int, accumulation: int) -> Windows:
    """Return the windows of data in order. The ranks get batches in turn, as accelerate distributes them."""
    batches = [
        {key: torch.stack([row[key] for row in data[i : i + micro_batch]]) for key in data[0]}
        for i in range(0, len(data), micro_batch)
    ]
    windows = [batches[i : i + ranks * accumulation] for i in range(0, len(batches), ranks * accumulation)]
    return [[window[rank::ranks] for rank in range(ranks)] for window in windows]


def windows_of(ranks: list[dict[str, Any]]) -> Windows:
    """Return the windows that the ranks recorded."""
    return [list(window) for window in zip(*(rank["windows"] for rank in ranks), strict=True)]


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in trainable(model)]).clone()


def split(window: list[dict[str, Any]], m: int | None, micro_batch: int) -> list[Group]:
    """Return the groups of one rank's window, each with one perturbation. The loss is the mean over micro-batches."""
    if m is None or m >= micro_batch:
        size = len(window) if m is None else m // micro_batch
        return [
            [(1 / len(window), batch) for batch in window[start : start + size]]
            for start in range(0, len(window), size)
        ]
    groups = []
    for batch in window:
        examples = len(batch["labels"])
        for start in range(0, examples, m):
            part = {key: value[start : start + m] for key, value in batch.items()}
            groups.append([(len(part["labels"]) / examples / len(window), part)])
    return groups


def gradient(model: nn.Module, weights: torch.Tensor, group: Group) -> torch.Tensor:
    parameters = trainable(model)
    nn.utils.vector_to_parameters(weights, parameters)
    total = torch.zeros_like(weights)
    for share, batch in group:
        loss = share * model(**batch)["loss"]
        # A parameter that this pass did not use adds nothing
        parts = torch.autograd.grad(loss, parameters, allow_unused=True)
        total += torch.cat(
            [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, parts, strict=True)]
        )
    return total


def sam_gradient(
    model: nn.Module,
    weights: torch.Tensor,
    window: list[list[dict[str, Any]]],
    micro_batch: int,
    *,
    m: int | None = None,
    synchronised: bool = False,
    steps: int = 1,
    unperturbed: Collection[int] = (),
) -> torch.Tensor:
    """
    Return the gradient of one update, averaged over ranks.

    Args:
        synchronised: the ascent gradient is averaged over ranks.
        unperturbed: ranks whose ascent gradient is not finite.
    """
    per_rank = [[(rank, group) for group in split(batches, m, micro_batch)] for rank, batches in enumerate(window)]
    if synchronised:
        teams = list(zip(*per_rank, strict=True))
    else:
        teams = [(member,) for members in per_rank for member in members]
    total = torch.zeros_like(weights)
    for team in teams:
        epsilon = torch.zeros_like(weights)
        for _ in range(0 if any(rank in unperturbed for rank, _ in team) else steps):
            ascent = sum(gradient(model, weights + epsilon, group) for _, group in team) / len(team)
            epsilon = epsilon + RHO / steps * ascent / ascent.norm()
        total += sum(gradient(model, weights + epsilon, group) for _, group in team)
    return total / len(window)


def train(
    make_model: Callable[[], nn.Module],
    windows: Windows,
    micro_batch: int,
    unperturbed: Collection[tuple[int, int]] = (),
    **options: Any,
) -> torch.Tensor:
    """Return the weights after each update of gradient descent. `unperturbed` are pairs of update and rank."""
    model = make_model().train()
    weights = flat(model)
    history = []
    for update, window in enumerate(windows):
        ranks = [rank for at, rank in unperturbed if at == update]
        total = sam_gradient(model, weights, window, micro_batch, unperturbed=ranks, **options)
        weights = weights - LEARNING_RATE * total
        history.append(weights)
    return torch.stack(history)

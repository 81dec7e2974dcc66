"""Sharpness-Aware Minimization written out once more, naively, in float64: what the package is compared with.

Nothing here imports `sam_hf` or `torch.optim`. The weights are one flat vector; a window is a list of micro-batches,
and a micro-batch a list of examples, each with the weight that its loss has in the window's loss. Speed is of no
concern.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

# An example and the factor of its loss in the window's loss, L = sum of factor * loss(w, example).
Example = tuple[Any, float]
Loss = Callable[[torch.Tensor, Any], torch.Tensor]


def equal_weights(window: Sequence[Sequence[Any]]) -> list[list[Example]]:
    """The mean over all the window's examples: what `num_items_in_batch` gives."""
    total = sum(len(micro_batch) for micro_batch in window)
    return [[(example, 1 / total) for example in micro_batch] for micro_batch in window]


def mean_of_means(window: Sequence[Sequence[Any]]) -> list[list[Example]]:
    """The mean over micro-batches of each one's mean: what Trainer makes of a model that returns means."""
    return [[(example, 1 / len(micro) / len(window)) for example in micro] for micro in window]


def sum_of_means(window: Sequence[Sequence[Any]]) -> list[list[Example]]:
    """The means added up and not divided: what Trainer makes of a model that accepts loss kwargs and ignores them."""
    return [[(example, 1 / len(micro)) for example in micro] for micro in window]


def split_into_groups(window: list[list[Example]], m: int | None, batch_size: int) -> list[list[Example]]:
    """Disjoint groups of `m` examples, each of which has a perturbation of its own."""
    if m is None:
        return [[example for micro_batch in window for example in micro_batch]]
    if m >= batch_size:
        together = m // batch_size
        return [
            [example for micro_batch in window[start : start + together] for example in micro_batch]
            for start in range(0, len(window), together)
        ]
    return [micro[start : start + m] for micro in window for start in range(0, len(micro), m)]


def value_and_gradient(loss: Loss, w: torch.Tensor, group: list[Example]) -> tuple[float, torch.Tensor]:
    value, gradient = 0.0, torch.zeros_like(w)
    for example, factor in group:
        point = w.clone().requires_grad_(True)
        example_loss = factor * loss(point, example)
        gradient += torch.autograd.grad(example_loss, point)[0]
        value += float(example_loss.detach())
    return value, gradient


def dual_direction(g: torch.Tensor, p: float) -> torch.Tensor:
    """Equation 2 of arXiv 2010.01412 for radius 1: sign(g) |g|^(q-1) / (||g||_q^q)^(1/p), with 1/p + 1/q = 1."""
    largest = float(g.abs().max())
    if largest == 0.0:
        return torch.zeros_like(g)
    # The formula has degree 0 in g, so a common factor may go before the powers are taken.
    entries = [float(entry) / largest for entry in g]
    if math.isinf(p):
        return torch.tensor([math.copysign(1.0, x) if x else 0.0 for x in entries], dtype=torch.float64)
    q = p / (p - 1)
    denominator = math.fsum(abs(x) ** q for x in entries) ** (1 / p)
    direction = [math.copysign(abs(x) ** (q - 1), x) / denominator if x else 0.0 for x in entries]
    return torch.tensor(direction, dtype=torch.float64)


@dataclass
class Descent:
    """What one window gives: the update gradient and the quantities that are logged."""

    gradient: torch.Tensor
    loss: float = 0.0
    perturbed_loss: float = 0.0
    ascent_gradients: list[torch.Tensor] = field(default_factory=list)
    descent_gradients: list[torch.Tensor] = field(default_factory=list)
    perturbations: list[torch.Tensor] = field(default_factory=list)


def sam_gradient(
    loss: Loss, w: torch.Tensor, groups: list[list[Example]], rho: float, p: float = 2.0, k: int = 1
) -> Descent:
    result = Descent(gradient=torch.zeros_like(w))
    for group in groups:
        epsilon = torch.zeros_like(w)
        for step in range(k):
            value, g = value_and_gradient(loss, w + epsilon, group)
            if step == 0:
                result.loss += value
                result.ascent_gradients.append(g)
            epsilon = epsilon + rho / k * dual_direction(g, p)
        value, s = value_and_gradient(loss, w + epsilon, group)
        result.perturbed_loss += value
        result.gradient += s
        result.descent_gradients.append(s)
        result.perturbations.append(epsilon)
    return result


def clip(gradient: torch.Tensor, max_norm: float) -> torch.Tensor:
    if max_norm <= 0:
        return gradient
    norm = math.sqrt(math.fsum(float(x) ** 2 for x in gradient))
    return gradient * min(1.0, max_norm / (norm + 1e-6))


@dataclass
class SGD:
    momentum: float = 0.0
    velocity: torch.Tensor | None = None

    def step(self, w: torch.Tensor, u: torch.Tensor, lr: float) -> torch.Tensor:
        self.velocity = u.clone() if self.velocity is None else self.momentum * self.velocity + u
        return w - lr * self.velocity


@dataclass
class AdamW:
    """arXiv 1711.05101, with the weight decay given for each coordinate."""

    decay: torch.Tensor
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    t: int = 0
    first: torch.Tensor | float = 0.0
    second: torch.Tensor | float = 0.0

    def step(self, w: torch.Tensor, u: torch.Tensor, lr: float) -> torch.Tensor:
        self.t += 1
        self.first = self.beta1 * self.first + (1 - self.beta1) * u
        self.second = self.beta2 * self.second + (1 - self.beta2) * u * u
        first = self.first / (1 - self.beta1**self.t)
        second = self.second / (1 - self.beta2**self.t)
        return w - lr * self.decay * w - lr * first / (second.sqrt() + self.eps)


def train(
    loss: Loss,
    w: torch.Tensor,
    windows: list[list[list[Example]]],
    optimizer: SGD | AdamW,
    learning_rates: Sequence[float],
    batch_size: int,
    rho: float,
    p: float = 2.0,
    k: int = 1,
    m: int | None = None,
    max_grad_norm: float = 0.0,
) -> tuple[torch.Tensor, list[Descent]]:
    history = []
    for window, lr in zip(windows, learning_rates, strict=True):
        descent = sam_gradient(loss, w, split_into_groups(window, m, batch_size), rho, p, k)
        w = optimizer.step(w, clip(descent.gradient, max_grad_norm), lr)
        history.append(descent)
    return w, history

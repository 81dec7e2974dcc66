"""The methods beside SAM, and the axes they share, written out naively in float64: what the package is compared with.

Nothing here imports `sam_hf` or `torch.optim`. `Run` holds what outlives an update (the weights, the base optimizer,
moving averages) for any number of processes at once: a window is one list of groups a process, see `reference`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from reference import SGD, AdamW, Example, Loss, clip, dual_direction, split_into_groups, value_and_gradient

DEFAULTS: dict[str, dict[str, Any]] = {
    "sam": {},
    "asam": {"eta": 0.01},
    "gsam": {"alpha": 0.4},
    "wsam": {"gamma": 0.9, "decouple": False},
    "fsam": {"sigma": 1.0, "lambda": 0.9},
    "vasso": {"theta": 0.4},
    "looksam": {"alpha": 0.7},
    "msam": {},
}

# Fields of `Run` and the package's names for them; `options` and `mask` are said in other ways there
ARGUMENTS = {
    "method": "sam_method",
    "rho": "sam_rho",
    "p": "sam_p",
    "k": "sam_ascent_steps",
    "m": "sam_m",
    "schedule": "sam_rho_schedule",
    "rho_min": "sam_rho_min",
    "warmup": "sam_rho_warmup_ratio",
    "interval": "sam_interval",
    "start": "sam_start_ratio",
    "fraction": "sam_ascent_fraction",
    "synchronised": "sam_sync_perturbation",
    "options": "sam_method_kwargs",
}


def ceil_of_product(share: float, count: int) -> int:
    """⌈share·count⌉ of the decimal number that was written down: 0.55·20 is 11 and not 12, as floats have it."""
    return math.ceil(Fraction(repr(float(share))) * count)


def radius(schedule: str, rho: float, low: float, warmup: float, t: int, total: int, lr_share: float) -> float:
    """ρ of update t of `total`; `lr_share`: the learning rate in units of its base value."""
    progress = t / (total - 1) if total > 1 else 0.0
    if schedule == "linear":
        return rho + (low - rho) * progress
    if schedule == "cosine":
        return low + (rho - low) * (1 + math.cos(math.pi * progress)) / 2
    if schedule == "lr":
        return low + (rho - low) * lr_share
    if schedule == "warmup":
        steps = ceil_of_product(warmup, total)
        return rho * min(1.0, t / steps) if steps else rho
    return rho


def ascent_part(group: list[Example], fraction: float) -> list[Example]:
    """The first ⌈f·n⌉ examples, weighted so that together they weigh what the group does."""
    part = group[: ceil_of_product(fraction, len(group))]
    scale = math.fsum(factor for _, factor in group) / math.fsum(factor for _, factor in part)
    return [(example, factor * scale) for example, factor in part]


def inner(a: torch.Tensor, b: torch.Tensor) -> float:
    return math.fsum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def norm(a: torch.Tensor) -> float:
    return math.sqrt(inner(a, a))


def without_component(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The part of `a` that is orthogonal to `b`."""
    square = inner(b, b)
    return a - (inner(a, b) / square if square else 0.0) * b


def mean(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    return sum(vectors[1:], vectors[0]) / len(vectors)


def nbar(
    a: torch.Tensor, b: torch.Tensor, g_a: torch.Tensor, g_b: torch.Tensor, alpha: float, lr: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """A pair of LoRA's factors just before the optimizer steps: the one with the smaller gradient shrinks."""
    sign = 1 if norm(g_a.flatten()) >= norm(g_b.flatten()) else -1
    return (1 + sign * alpha * lr) * a, (1 - sign * alpha * lr) * b


@dataclass
class Update:
    """What is logged of one update; of several processes, their means."""

    rho: float
    loss: float = 0.0
    perturbed_loss: float | None = None
    cosine: float | None = None
    gradient: torch.Tensor | None = None


@dataclass
class Run:
    """
    One training run of `total` updates.

    `mask`: a boolean a coordinate, the perturbed ones. `scaled`: the coordinates that asam measures relative to their
    size. `base_lr`: the first learning rate, before any schedule.
    """

    loss: Loss
    w: torch.Tensor
    optimizer: SGD | AdamW
    batch_size: int
    total: int
    base_lr: float
    rho: float
    method: str = "sam"
    options: dict[str, Any] = field(default_factory=dict)
    p: float = 2.0
    k: int = 1
    m: int | None = None
    schedule: str = "constant"
    rho_min: float = 0.0
    warmup: float = 0.1
    interval: int = 1
    start: float = 0.0
    fraction: float = 1.0
    mask: torch.Tensor | None = None
    scaled: torch.Tensor | None = None
    synchronised: bool = False
    max_grad_norm: float = 0.0
    t: int = 0
    averages: dict[int, torch.Tensor] = field(default_factory=dict)
    s_v: torch.Tensor | None = None

    def __post_init__(self):
        self.options = DEFAULTS[self.method] | self.options
        if self.mask is None:
            self.mask = torch.ones_like(self.w, dtype=torch.bool)

    def update(self, windows: list[list[list[Example]]], lr: float) -> Update:
        """One update; `windows`: a list of micro-batches a process."""
        groups = [split_into_groups(window, self.m, self.batch_size) for window in windows]
        rho = radius(self.schedule, self.rho, self.rho_min, self.warmup, self.t, self.total, lr / self.base_lr)
        timed = self.t % self.interval == 0 and self.t >= ceil_of_product(self.start, self.total)
        self.t += 1
        if not timed or rho == 0.0:
            return self._plain(groups, lr)
        if self.method == "msam":
            return self._momentum(groups, rho, lr)
        return self._two_passes(groups, rho, lr)

    def _plain(self, groups, lr: float) -> Update:
        values, gradients = zip(*(self._whole(self.w, of_rank) for of_rank in groups), strict=True)
        g = mean(gradients)
        u = g
        if self.s_v is not None and norm(self.s_v) > 0:
            u = g + self.options["alpha"] * norm(g * self.mask) / norm(self.s_v) * self.s_v
        self._step(u, lr)
        return Update(0.0, loss=sum(values) / len(values), gradient=u)

    def _momentum(self, groups, rho: float, lr: float) -> Update:
        v = self.optimizer.velocity if isinstance(self.optimizer, SGD) else self.optimizer.first
        epsilon = torch.zeros_like(self.w)
        if isinstance(v, torch.Tensor) and norm(v * self.mask) > 0:
            epsilon = -rho / norm(v * self.mask) * (v * self.mask)
        values, gradients = zip(*(self._whole(self.w + epsilon, of_rank) for of_rank in groups), strict=True)
        s = mean(gradients)
        self._step(s, lr)
        return Update(rho if epsilon.any() else 0.0, loss=sum(values) / len(values), gradient=s)

    def _two_passes(self, groups, rho: float, lr: float) -> Update:
        ranks = range(len(groups))
        loss = perturbed_loss = 0.0
        g_all = [torch.zeros_like(self.w) for _ in ranks]
        s_all = [torch.zeros_like(self.w) for _ in ranks]
        for index in range(len(groups[0])):
            epsilon = [torch.zeros_like(self.w) for _ in ranks]
            for step in range(self.k):
                gradients = []
                for rank in ranks:
                    part = ascent_part(groups[rank][index], self.fraction)
                    value, g = value_and_gradient(self.loss, self.w + epsilon[rank], part)
                    gradients.append(g * self.mask)
                    if step == 0:
                        loss += value / len(groups)
                        g_all[rank] += g * self.mask
                if self.synchronised:
                    gradients = [mean(gradients) for _ in ranks]
                # Synchronised averages are the same on every rank, so each may keep its own
                for rank in ranks:
                    epsilon[rank] = epsilon[rank] + rho / self.k * self._direction(gradients[rank], rank)
            for rank in ranks:
                value, s = value_and_gradient(self.loss, self.w + epsilon[rank], groups[rank][index])
                perturbed_loss += value / len(groups)
                s_all[rank] += s
        g, s = mean(g_all), mean(s_all)
        self._combine_and_step(g, s, lr)
        lengths = norm(g) * norm(s * self.mask)
        cosine = inner(g, s * self.mask) / lengths if lengths else None
        return Update(rho, loss, perturbed_loss, cosine)

    def _direction(self, g: torch.Tensor, rank: int) -> torch.Tensor:
        """ε for radius 1."""
        if self.method == "asam":
            t = torch.where(self.scaled, self.w.abs() + self.options["eta"], torch.ones_like(self.w))
            length = norm(t * g)
            return t * t * g / length if length else torch.zeros_like(g)
        if self.method not in ("fsam", "vasso"):
            return dual_direction(g, self.p)
        before = self.averages.get(rank)
        if self.method == "fsam":
            inertia = self.options["lambda"]
            d = g if before is None else g - self.options["sigma"] * before
            self.averages[rank] = g if before is None else inertia * before + (1 - inertia) * g
        else:
            theta = self.options["theta"]
            d = g if before is None else (1 - theta) * before + theta * g
            self.averages[rank] = d
        length = norm(d)
        return d / length if length else torch.zeros_like(d)

    def _combine_and_step(self, g: torch.Tensor, s: torch.Tensor, lr: float) -> None:
        """`g` is 0 wherever the weights are not perturbed; there the optimizer gets s."""
        perturbed = s * self.mask
        elsewhere = s - perturbed
        if self.method == "gsam":
            u = perturbed - self.options["alpha"] * without_component(g, perturbed)
            self._step(u + elsewhere, lr)
        elif self.method == "wsam":
            weight = self.options["gamma"] / (1 - self.options["gamma"])
            if self.options["decouple"]:
                self._step(g + elsewhere, lr)
                self.w = self.w - lr * weight * (perturbed - g)
            else:
                self._step(g + weight * (perturbed - g) + elsewhere, lr)
        else:
            if self.method == "looksam":
                self.s_v = without_component(perturbed, g)
            self._step(s, lr)

    def _whole(self, w: torch.Tensor, groups: list[list[Example]]) -> tuple[float, torch.Tensor]:
        return value_and_gradient(self.loss, w, [example for group in groups for example in group])

    def _step(self, u: torch.Tensor, lr: float) -> None:
        self.w = self.optimizer.step(self.w, clip(u, self.max_grad_norm), lr)

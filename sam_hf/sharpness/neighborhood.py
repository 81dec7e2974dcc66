"""How much the loss rises in a neighbourhood of the weights: the worst of it, or a random direction's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..methods import ASAM, Ascent, Point
from ..methods._direction import dual_direction
from ..update.perturbation import Perturbation
from .examples import examples_in, processes
from .krylov import check_count, probe
from .oracle import LossOracle


@dataclass(frozen=True)
class Sharpness:
    """
    Rises of the loss, L(w + ε) − L(w), in units of the loss.

    Attributes:
        values (`Tensor`): one a group of examples (or a random direction), of shape `(n,)`, float64.
        losses (`Tensor`): L(w) of each, of the same shape.
        examples (`Tensor`): how many examples each is a mean over.
        rho (`float`): the radius ρ.
        p (`float`): the order of the norm, 2 or inf.
    """

    values: Tensor
    losses: Tensor
    examples: Tensor
    rho: float
    p: float

    @property
    def mean(self) -> float:
        """The average, by examples."""
        return float((self.values * self.examples).sum() / self.examples.sum())

    @property
    def worst(self) -> float:
        return float(self.values.max())

    @property
    def standard_error(self) -> float:
        """Of the average, from the spread of the values; infinite with a single one."""
        return float(self.values.std() / len(self.values) ** 0.5) if len(self.values) > 1 else float("inf")


def m_sharpness(
    oracle: LossOracle,
    rho: float = 0.05,
    *,
    m: int | None = None,
    p: float = 2.0,
    ascent_steps: int = 1,
    adaptive: bool = False,
    eta: float = 0.01,
) -> Sharpness:
    r"""
    m-sharpness (SAM, arXiv 2010.01412, section 4.1): the rise of the loss of m examples at the worst point of a ball,
    max_{‖ε‖_p ≤ ρ} L_B(w + ε) − L_B(w), of each group B of m examples, with SAM's own ε̂ for the maximum.

    Args:
        oracle ([`LossOracle`]):
            The loss. Each process measures its own examples; the values of all of them are returned in each.
        rho (`float`, *optional*, defaults to `0.05`):
            The radius ρ.
        m (`int`, *optional*):
            Examples that share an ε. Defaults to the batches as they are. Groups are made of the examples in their
            order, so that the same oracle measures the same examples for every m.
        p (`float`, *optional*, defaults to `2.0`):
            2 or `float("inf")`.
        ascent_steps (`int`, *optional*, defaults to `1`):
            Steps of ρ/k each along the gradient where the one before it led, as `sam_ascent_steps`: a tighter bound
            from below, one pass more each.
        adaptive (`bool`, *optional*, defaults to `False`):
            A ball in units of each weight, ‖T⁻¹ε‖_p ≤ ρ: see [`adaptive_sharpness`].
        eta (`float`, *optional*, defaults to `0.01`):
            η of `adaptive`.

    Returns:
        [`Sharpness`]: `mean` is the average over groups, `worst` the largest.
    """
    _check(rho, p)
    check_count("ascent_steps", ascent_steps, 1)
    rows = []
    groups = oracle.groups(m)
    with oracle.measuring(), oracle.progress(len(groups), f"m-sharpness, p={p:g}") as bar:
        for group in groups:
            rows.append(_rise(oracle, group, rho, p, ascent_steps, ASAM(eta=eta) if adaptive else None))
            bar.update()
    values, losses, examples = torch.tensor(_gathered(rows), dtype=torch.float64).T
    return Sharpness(values, losses, examples, rho, p)


def adaptive_sharpness(
    oracle: LossOracle,
    rho: float = 0.5,
    *,
    m: int | None = None,
    p: float = 2.0,
    ascent_steps: int = 1,
    eta: float = 0.01,
) -> Sharpness:
    r"""
    Adaptive sharpness (ASAM, arXiv 2102.11600, section 3): max_{‖T⁻¹ε‖_p ≤ ρ} L_B(w + ε) − L_B(w), with T = |w| + η
    for weights and 1 for biases. With η = 0 it does not change when the weights of two layers are rescaled so that
    the function stays the same.

    ε̂ = ρ T d(T g) with d(u) the direction of the p-norm that u asks for; p = 2: ρ T² g/‖T g‖₂, p = ∞: ρ T sign(g).

    Args:
        rho (`float`, *optional*, defaults to `0.5`): the radius ρ, ASAM's default.
        eta (`float`, *optional*, defaults to `0.01`): η ≥ 0.

    The rest is as of [`m_sharpness`].
    """
    return m_sharpness(oracle, rho, m=m, p=p, ascent_steps=ascent_steps, adaptive=True, eta=eta)


def random_direction_sharpness(
    oracle: LossOracle,
    rho: float = 0.05,
    *,
    directions: int = 10,
    p: float = 2.0,
    adaptive: bool = False,
    eta: float = 0.01,
) -> Sharpness:
    r"""
    The average rise of the loss over random ε on the surface of the ball, E[L(w + ε)] − L(w).

    p = 2: uniform on the sphere ‖ε‖₂ = ρ, where a quadratic rises by ρ² tr(∇²L)/(2P); p = ∞: a random corner of the
    cube ‖ε‖_∞ = ρ, where it rises by ρ² tr(∇²L)/2.

    Args:
        oracle ([`LossOracle`]):
            The loss, over all processes.
        rho (`float`, *optional*, defaults to `0.05`):
            The radius ρ.
        directions (`int`, *optional*, defaults to `10`):
            How many, drawn under the oracle's seed.
        p (`float`, *optional*, defaults to `2.0`):
            2 or `float("inf")`.
        adaptive (`bool`, *optional*, defaults to `False`):
            Measure ε in units of each weight: T ε as of [`adaptive_sharpness`].
        eta (`float`, *optional*, defaults to `0.01`):
            η of `adaptive`.

    Returns:
        [`Sharpness`]: one value a direction; `examples` is the same for all.
    """
    _check(rho, p)
    check_count("directions", directions, 1)
    asam = ASAM(eta=eta) if adaptive else None
    generator = torch.Generator().manual_seed(oracle.seed)
    values = []
    with oracle.measuring(), oracle.progress(directions, f"Random directions, p={p:g}") as bar:
        loss = oracle.loss()
        for _ in range(directions):
            vector = probe(oracle, generator)
            with torch.no_grad(), Perturbation() as perturbation:
                ascent = dual_direction(oracle.split(vector), p)
                if asam is not None:
                    asam.scale(ascent.directions, _point(oracle, perturbation))
                perturbation.add(list(oracle.parameters.values()), ascent, rho)
                values.append(oracle.loss() - loss)
            bar.update()
    examples = oracle.over_processes(sum(map(examples_in, oracle.batches)))
    filled = torch.full((directions,), 1.0, dtype=torch.float64)
    return Sharpness(torch.tensor(values, dtype=torch.float64), filled * loss, filled * examples, rho, p)


def _rise(
    oracle: LossOracle, group: Sequence[Any], rho: float, p: float, steps: int, asam: ASAM | None
) -> tuple[float, float, float]:
    """(L(w + ε) − L(w), L(w), examples) of a group."""
    loss = oracle.loss_on(group)
    parameters = list(oracle.parameters.values())
    with Perturbation() as perturbation:
        for _ in range(steps):
            ascent = _ascent(oracle.split(oracle.gradient_on(group)), _point(oracle, perturbation), p, asam)
            if not ascent.finite:
                return float("nan"), loss, sum(map(examples_in, group))
            perturbation.add(parameters, ascent, rho / steps)
        return oracle.loss_on(group) - loss, loss, sum(map(examples_in, group))


@torch.no_grad()
def _ascent(gradient: list[Tensor], point: Point, p: float, asam: ASAM | None) -> Ascent:
    if asam is None:
        return dual_direction(gradient, p)
    asam.scale(gradient, point)
    ascent = dual_direction(gradient, p)
    asam.scale(ascent.directions, point)
    return ascent


def _point(oracle: LossOracle, perturbation: Perturbation) -> Point:
    parameters = list(oracle.parameters.values())
    own_names = [name.rpartition(".")[2] for name in oracle.parameters]
    return Point(parameters, perturbation.at_w(parameters), own_names)


def _gathered(rows: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Of all processes, in their order."""
    if processes()[1] == 1:
        return rows
    everyone: list[Any] = [None] * processes()[1]
    dist.all_gather_object(everyone, rows)
    return [row for part in everyone for row in part]


def _check(rho: float, p: float) -> None:
    if not 0 <= rho < float("inf"):
        raise ValueError(f"rho={rho}: a finite number >= 0")
    if p not in (2, float("inf")):
        raise ValueError(f'p={p}: 2 or float("inf")')

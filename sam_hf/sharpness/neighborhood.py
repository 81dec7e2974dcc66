"""How much the loss rises in a neighbourhood of the weights: at its worst point, or in random directions."""

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
from .checks import check, check_count, check_radius
from .examples import examples_in, processes
from .krylov import random_vector
from .oracle import LossOracle


@dataclass(frozen=True)
class Sharpness:
    """
    Rises of the loss, L(w + ε) − L(w), in units of the loss.

    Attributes:
        values (`Tensor`): one rise per group of examples, or per random direction, of shape `(n,)`, float64.
        losses (`Tensor`): L(w) of each, of the same shape.
        examples (`Tensor`): the number of examples that each is a mean over.
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
        """The mean rise, weighted by the number of examples."""
        return float((self.values * self.examples).sum() / self.examples.sum())

    @property
    def worst(self) -> float:
        """The largest rise."""
        return float(self.values.max())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean, from the spread of the values; infinite with a single one."""
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
    Measure m-sharpness (SAM, arXiv 2010.01412, section 4.1): for each group B of m examples, the rise of the loss at
    the worst point of a ball, max_{‖ε‖_p ≤ ρ} L_B(w + ε) − L_B(w), with SAM's own ε̂ for the maximum.

    Args:
        oracle ([`LossOracle`]): the loss. Each process measures its own examples, and all return the values of all.
        rho (`float`, *optional*, defaults to `0.05`): the radius ρ.
        m (`int`, *optional*): the number of examples that share an ε. Defaults to the batches as they are. Groups
            follow the order of the examples, so the same oracle measures the same examples for every m.
        p (`float`, *optional*, defaults to `2.0`): the order of the norm, 2 or `float("inf")`.
        ascent_steps (`int`, *optional*, defaults to `1`): the number k of steps of length ρ/k, each along the gradient
            where the step before ended, as in `sam_ascent_steps`. More steps give a tighter lower bound of the maximum
            and take one pass each.
        adaptive (`bool`, *optional*, defaults to `False`): measure ε in units of each weight, ‖T⁻¹ε‖_p ≤ ρ, as in
            [`adaptive_sharpness`].
        eta (`float`, *optional*, defaults to `0.01`): η of `adaptive`.

    Returns:
        `Sharpness`: `mean` is the mean over groups, and `worst` the largest value.
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
    Measure adaptive sharpness (ASAM, arXiv 2102.11600, section 3): max_{‖T⁻¹ε‖_p ≤ ρ} L_B(w + ε) − L_B(w), with
    T = |w| + η for weights and 1 for biases. With η = 0 it does not change when the weights of two layers are rescaled
    so that the function stays the same.

    ε̂ = ρ T d(T g), where d(u) is the dual direction of u in the p-norm: ρ T² g/‖T g‖₂ for p = 2, and ρ T sign(g) for
    p = ∞. The other arguments are those of [`m_sharpness`].

    Args:
        oracle ([`LossOracle`]): the loss.
        rho (`float`, *optional*, defaults to `0.5`): the radius ρ. The default is that of ASAM.
        eta (`float`, *optional*, defaults to `0.01`): η ≥ 0.

    Returns:
        `Sharpness`: `mean` is the mean over groups, and `worst` the largest value.
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
    Measure the mean rise of the loss over random ε on the surface of the ball, E[L(w + ε)] − L(w).

    For p = 2, ε is uniform on the sphere ‖ε‖₂ = ρ, where a quadratic rises by ρ² tr(∇²L)/(2P). For p = ∞, ε is a
    random corner of the cube ‖ε‖_∞ = ρ, where it rises by ρ² tr(∇²L)/2.

    Args:
        oracle ([`LossOracle`]): the loss, over all processes.
        rho (`float`, *optional*, defaults to `0.05`): the radius ρ.
        directions (`int`, *optional*, defaults to `10`): the number of directions, drawn under the oracle's seed.
        p (`float`, *optional*, defaults to `2.0`): the order of the norm, 2 or `float("inf")`.
        adaptive (`bool`, *optional*, defaults to `False`): measure ε in units of each weight, which means T ε with the
            T of [`adaptive_sharpness`].
        eta (`float`, *optional*, defaults to `0.01`): η of `adaptive`.

    Returns:
        `Sharpness`: one value per direction, all over the same examples.
    """
    _check(rho, p)
    check_count("directions", directions, 1)
    asam = ASAM(eta=eta) if adaptive else None
    generator = torch.Generator().manual_seed(oracle.seed)
    values = []
    with oracle.measuring(), oracle.progress(directions, f"Random directions, p={p:g}") as bar:
        loss = oracle.loss()
        for _ in range(directions):
            vector = random_vector(oracle, generator)
            with torch.no_grad(), Perturbation() as perturbation:
                ascent = dual_direction(oracle.split(vector), p)
                if asam is not None:
                    asam.scale_by_weights(ascent.directions, _point(oracle, perturbation))
                perturbation.add(oracle.weights, ascent, rho)
                values.append(oracle.loss() - loss)
            bar.update()
    examples = oracle.over_processes(sum(map(examples_in, oracle.batches)))
    ones = torch.ones(directions, dtype=torch.float64)
    return Sharpness(torch.tensor(values, dtype=torch.float64), ones * loss, ones * examples, rho, p)


def _rise(
    oracle: LossOracle, group: Sequence[Any], rho: float, p: float, steps: int, asam: ASAM | None
) -> tuple[float, float, float]:
    """Return L(w + ε) − L(w), L(w) and the number of examples of a group."""
    loss, examples = oracle.loss_on(group), sum(map(examples_in, group))
    with Perturbation() as perturbation:
        for _ in range(steps):
            ascent = _ascent(oracle.split(oracle.gradient_on(group)), _point(oracle, perturbation), p, asam)
            if not ascent.finite:
                return float("nan"), loss, examples
            perturbation.add(oracle.weights, ascent, rho / steps)
        return oracle.loss_on(group) - loss, loss, examples


@torch.no_grad()
def _ascent(gradient: list[Tensor], point: Point, p: float, asam: ASAM | None) -> Ascent:
    if asam is None:
        return dual_direction(gradient, p)
    asam.scale_by_weights(gradient, point)
    ascent = dual_direction(gradient, p)
    asam.scale_by_weights(ascent.directions, point)
    return ascent


def _point(oracle: LossOracle, perturbation: Perturbation) -> Point:
    own_names = [name.rpartition(".")[2] for name in oracle.parameters]
    return Point(oracle.weights, perturbation.at_w(oracle.weights), own_names)


def _gathered(rows: list[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Return the rows of all processes, in the order of the processes."""
    if processes()[1] == 1:
        return rows
    rows_of_all: list[Any] = [None] * processes()[1]
    dist.all_gather_object(rows_of_all, rows)
    return [row for part in rows_of_all for row in part]


def _check(rho: float, p: float) -> None:
    check_radius(rho)
    check("p", p, p in (2, float("inf")), '2 or float("inf")')

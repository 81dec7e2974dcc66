"""The density of the Hessian's eigenvalues by stochastic Lanczos quadrature."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .krylov import allocate, check_count, orthogonalize, probe
from .oracle import LossOracle


@dataclass(frozen=True)
class SpectralDensity:
    """
    The density of the eigenvalues of ∇²L(w), a probability distribution on the real line.

    Attributes:
        nodes (`Tensor`): of shape `(probes, steps)`, float64: where each probe's quadrature has its points, in units
            of eigenvalues, in ascending order.
        weights (`Tensor`): their weights, of the same shape; each row sums to 1. Points of weight 0 fill up rows
            whose process ended early.
        dimension (`int`): the number of eigenvalues, P. A density times P counts eigenvalues.
    """

    nodes: Tensor
    weights: Tensor
    dimension: int

    def moment(self, power: int) -> float:
        """∫ λ^power dφ(λ) = tr((∇²L)^power)/P."""
        return float((self.weights * self.nodes**power).sum(1).mean())

    def moment_error(self, power: int) -> float:
        """The standard error of that estimate, from the spread over probes; infinite with a single one."""
        samples = (self.weights * self.nodes**power).sum(1)
        return float(samples.std() / len(samples) ** 0.5) if len(samples) > 1 else float("inf")

    def grid(self, points: int = 1000, margin: float = 0.05) -> Tensor:
        """Eigenvalues to draw the density at: over all nodes that have a weight, and a margin on both sides."""
        seen = self.nodes[self.weights > 0]
        low, high = float(seen.min()), float(seen.max())
        width = margin * (high - low or 1.0)
        return torch.linspace(low - width, high + width, points, dtype=torch.float64)

    def density(self, at: Tensor | None = None, sigma: float | None = None) -> Tensor:
        """
        The density with each point widened to a normal distribution, as in Ghorbani et al., section 2.

        Args:
            at (`Tensor`, *optional*): eigenvalues, of shape `(n,)`. Defaults to `grid()`.
            sigma (`float`, *optional*): the width, in units of eigenvalues. Defaults to 1 % of the range of nodes.

        Returns:
            `Tensor`: of shape `(n,)`, float64, in 1/units of eigenvalues.
        """
        if sigma is not None and not sigma > 0:
            raise ValueError(f"sigma={sigma}: a number > 0")
        at = self.grid() if at is None else at.double()
        seen = self.nodes[self.weights > 0]
        sigma = sigma or 0.01 * float(seen.max() - seen.min()) or 0.01
        total = torch.zeros_like(at)
        for node, weight in zip(self.nodes.flatten(), self.weights.flatten(), strict=True):
            total += weight * torch.exp(-(((at - node) / sigma) ** 2) / 2)
        return total / (len(self.nodes) * sigma * (2 * torch.pi) ** 0.5)


@torch.no_grad()
def hessian_spectral_density(
    oracle: LossOracle, *, probes: int | Tensor = 10, steps: int = 30, max_vectors: int = 12
) -> SpectralDensity:
    r"""
    The density by stochastic Lanczos quadrature (Ghorbani, Krishnan, Xiao: "An Investigation into Neural Net
    Optimization via Hessian Eigenvalue Density", ICML 2019, arXiv 1901.10159, section 2).

    Of each random probe v the Lanczos process makes a Gauss quadrature of vᵀ f(∇²L) v that is exact for polynomials f
    of degree 2·steps − 1; over probes it averages to tr f(∇²L)/P. A steep density costs no memory: steps beyond
    `max_vectors` are orthogonalised against the last `max_vectors` alone, which leaves copies of eigenvalues that
    share one weight, and the quadrature as good (Chen, Trogdon, Ubaru: "Analysis of stochastic Lanczos quadrature for
    spectrum approximation", ICML 2021, arXiv 2105.06595).

    Args:
        oracle ([`LossOracle`]):
            The loss.
        probes (`int` or `Tensor`, *optional*, defaults to `10`):
            Random probes, or probes of your own, of shape `(n, P)`: with the rows of an orthogonal matrix the
            moments are exact.
        steps (`int`, *optional*, defaults to `30`):
            Products a probe; `probes` × `steps` in all.
        max_vectors (`int`, *optional*, defaults to `12`):
            Vectors stored at a time, each as large as the weights: 4.5 GiB for 100 M float32 parameters. At least 2.

    Returns:
        [`SpectralDensity`]
    """
    own = isinstance(probes, Tensor)
    count = len(probes) if isinstance(probes, Tensor) else probes
    if isinstance(probes, Tensor) and probes.shape != (count, oracle.dimension):
        raise ValueError(f"probes of shape {tuple(probes.shape)}: (n, {oracle.dimension})")
    check_count("probes", count, 1)
    check_count("steps", steps, 1)
    check_count("max_vectors", max_vectors, 2)
    steps = min(steps, oracle.dimension)
    generator = torch.Generator().manual_seed(oracle.seed)
    basis, text = allocate(oracle, min(max_vectors, steps))
    nodes = torch.zeros(count, steps, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    with oracle.measuring(), oracle.progress(count * steps, f"Spectral density ({text})") as bar:
        for index in range(count):
            start = probes[index].to(basis, copy=True) if own else probe(oracle, generator, signs=True)  # type: ignore[index]
            matrix = _tridiagonal(oracle, start.div_(start.norm()), basis, steps, bar)
            values, vectors = torch.linalg.eigh(matrix)
            length = len(values)
            nodes[index, :length], weights[index, :length] = values, vectors[0] ** 2
            nodes[index, length:] = values[-1]
    return SpectralDensity(nodes, weights, oracle.dimension)


def _tridiagonal(oracle: LossOracle, start: Tensor, basis: Tensor, steps: int, bar) -> Tensor:
    """T of the Lanczos process from `start`, float64; smaller than `steps` where the Krylov space is."""
    diagonal: list[float] = []
    beside: list[float] = []
    vector = start
    for step in range(steps):
        basis[step % len(basis)] = vector
        product = oracle.hvp(vector)
        bar.update()
        if not product.isfinite().all():
            raise FloatingPointError(
                "A Hessian-vector product is not finite: the loss or its gradient overflows here."
            )
        scale = float(product.norm())
        taken = orthogonalize(product, basis[: step + 1])
        diagonal.append(float(taken[step % len(basis)]))
        norm = float(product.norm())
        if step + 1 == steps or norm <= 100 * torch.finfo(product.dtype).eps * max(scale, *map(abs, diagonal)):
            break
        beside.append(norm)
        vector = product.div_(norm)
    matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
    if beside:
        off = torch.tensor(beside, dtype=torch.float64)
        matrix += torch.diag(off, 1) + torch.diag(off, -1)
    return matrix

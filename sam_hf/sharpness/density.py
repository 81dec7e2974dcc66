"""The density of the Hessian's eigenvalues by stochastic Lanczos quadrature; `krylov.py` says why by hand."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check, check_count
from .krylov import allocate_basis, random_vector, tridiagonal_matrix
from .oracle import LossOracle


@dataclass(frozen=True)
class SpectralDensity:
    """
    The density of the eigenvalues of ∇²L(w), a probability distribution on the real line.

    Attributes:
        nodes (`Tensor`): the points of each probe's quadrature, of shape `(probes, steps)`, float64, in units of
            eigenvalues, in ascending order.
        weights (`Tensor`): the weights of the points, of the same shape. Each row sums to 1. Points of weight 0 fill
            up the rows of processes that ended early.
        dimension (`int`): the number of eigenvalues, P. A density times P counts eigenvalues.
    """

    nodes: Tensor
    weights: Tensor
    dimension: int

    def moment(self, power: int) -> float:
        """Return ∫ λ^power dφ(λ) = tr((∇²L)^power)/P."""
        return float((self.weights * self.nodes**power).sum(1).mean())

    def moment_error(self, power: int) -> float:
        """Return the standard error of that estimate, from the spread over probes; infinite with a single probe."""
        samples = (self.weights * self.nodes**power).sum(1)
        return float(samples.std() / len(samples) ** 0.5) if len(samples) > 1 else float("inf")

    def grid(self, points: int = 1000, margin: float = 0.05) -> Tensor:
        """Return eigenvalues to draw the density at: the range of all nodes with a weight, and a margin around it."""
        used = self.nodes[self.weights > 0]
        low, high = float(used.min()), float(used.max())
        width = margin * (high - low or 1.0)
        return torch.linspace(low - width, high + width, points, dtype=torch.float64)

    def density(self, at: Tensor | None = None, sigma: float | None = None) -> Tensor:
        """
        Return the density with each point widened to a normal distribution, as in Ghorbani et al., section 2.

        Args:
            at (`Tensor`, *optional*): eigenvalues, of shape `(n,)`. Defaults to `grid()`.
            sigma (`float`, *optional*): the width, in units of eigenvalues. Defaults to 1 % of the range of nodes.

        Returns:
            `Tensor`: of shape `(n,)`, float64, in 1/units of eigenvalues.
        """
        check("sigma", sigma, sigma is None or sigma > 0, "a number > 0")
        at = self.grid() if at is None else at.double()
        used = self.nodes[self.weights > 0]
        sigma = sigma or 0.01 * float(used.max() - used.min()) or 0.01
        total = torch.zeros_like(at)
        for node, weight in zip(self.nodes.flatten(), self.weights.flatten(), strict=True):
            total += weight * torch.exp(-(((at - node) / sigma) ** 2) / 2)
        return total / (len(self.nodes) * sigma * (2 * torch.pi) ** 0.5)


@torch.no_grad()
def hessian_spectral_density(
    oracle: LossOracle, *, probes: int | Tensor = 10, steps: int = 30, max_vectors: int = 12
) -> SpectralDensity:
    r"""
    Estimate the density by stochastic Lanczos quadrature (Ghorbani, Krishnan, Xiao: "An Investigation into Neural Net
    Optimization via Hessian Eigenvalue Density", ICML 2019, arXiv 1901.10159, section 2).

    For each random probe v the Lanczos process gives a Gauss quadrature of vᵀ f(∇²L) v that is exact for polynomials f
    of degree 2·steps − 1. The mean over probes estimates tr f(∇²L)/P. More steps take no more memory: steps beyond
    `max_vectors` are orthogonalised against the last `max_vectors` only. This leaves copies of eigenvalues, which
    share one weight, and does not harm the quadrature (Chen, Trogdon, Ubaru: "Analysis of stochastic Lanczos
    quadrature for spectrum approximation", ICML 2021, arXiv 2105.06595).

    Args:
        oracle ([`LossOracle`]): the loss.
        probes (`int` or `Tensor`, *optional*, defaults to `10`): the number of random probes, or your own probes, of
            shape `(n, P)`. With the rows of an orthogonal matrix the moments are exact.
        steps (`int`, *optional*, defaults to `30`): products per probe, so `probes` × `steps` in total.
        max_vectors (`int`, *optional*, defaults to `12`): the largest number of stored vectors, each as large as the
            weights: 4.5 GiB for 100 M float32 parameters. At least 2.

    Returns:
        `SpectralDensity`: the quadrature of each probe.
    """
    count = len(probes) if isinstance(probes, Tensor) else probes
    if isinstance(probes, Tensor):
        allowed = probes.shape == (count, oracle.dimension)
        check("probes.shape", tuple(probes.shape), allowed, f"(n, {oracle.dimension})")
    check_count("probes", count, 1)
    check_count("steps", steps, 1)
    check_count("max_vectors", max_vectors, 2)
    steps = min(steps, oracle.dimension)
    generator = torch.Generator().manual_seed(oracle.seed)
    basis, text = allocate_basis(oracle, min(max_vectors, steps))
    nodes = torch.zeros(count, steps, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    with oracle.measuring(), oracle.progress(count * steps, f"Spectral density ({text})") as bar:
        for row in range(count):
            if isinstance(probes, Tensor):
                start = probes[row].to(basis, copy=True)
            else:
                start = random_vector(oracle, generator, signs=True)
            matrix = tridiagonal_matrix(oracle, start.div_(start.norm()), basis, steps, bar)
            values, vectors = torch.linalg.eigh(matrix)
            length = len(values)
            nodes[row, :length], weights[row, :length] = values, vectors[0] ** 2
            nodes[row, length:] = values[-1]
    return SpectralDensity(nodes, weights, oracle.dimension)

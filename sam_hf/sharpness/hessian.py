"""The Hessian's largest eigenvalues and its trace, from Hessian-vector products alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import logging

from .krylov import allocate, check_count, orthogonalize, probe, transform
from .oracle import LossOracle

logger = logging.get_logger(__name__)

# Bytes of basis vectors by default: with the weights and the passes of 100 M parameters it stays below 8 GiB
_ROOM = 4 * 2**30


@dataclass(frozen=True)
class Eigenvalues:
    """
    The largest eigenvalues of ∇²L(w).

    Attributes:
        values (`Tensor`): of shape `(k,)`, float64, largest first; in units of loss per squared unit of weight.
        residuals (`Tensor`): ‖∇²L v − λ v‖₂ of each: an eigenvalue of the Hessian is at most this far away; in
            practice its square over the gap to the next one.
        vectors (`Tensor` or `None`): of shape `(k, P)`, orthonormal, in the order of the oracle's `parameters`.
        products (`int`): Hessian-vector products that were taken.
        converged (`bool`): every residual is within the tolerance.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor | None
    products: int
    converged: bool

    def ratio(self, of: int = 1, to: int = 5) -> float:
        """λ₁/λ₅, by which the SAM paper (arXiv 2010.01412, section 4.2, figure 3) tells sharp minima from flat."""
        for name, index in (("of", of), ("to", to)):
            check_count(name, index, 1, len(self.values), ", the number of eigenvalues that were asked for")
        return float(self.values[of - 1] / self.values[to - 1])


@torch.no_grad()
def hessian_eigenvalues(
    oracle: LossOracle,
    k: int = 5,
    *,
    max_vectors: int | None = None,
    tolerance: float = 1e-4,
    max_products: int = 200,
    eigenvectors: bool = False,
) -> Eigenvalues:
    r"""
    The k largest (most positive) eigenvalues by the Lanczos process with full reorthogonalisation and thick restart
    (Wu and Simon, "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems", SIAM J. Matrix Anal. Appl.
    22, 2000).

    When `max_vectors` basis vectors are stored, the best approximations so far are kept and the process goes on from
    them: memory is bounded whatever the number of products.

    Args:
        oracle ([`LossOracle`]):
            The loss.
        k (`int`, *optional*, defaults to `5`):
            How many.
        max_vectors (`int`, *optional*):
            Basis vectors stored at a time, each as large as the weights; at least k + 2. Defaults to as many as fit
            4 GiB, at most 40 and at least max(k + 3, 8): 10 for k = 5 and 100 M float32 parameters. A product
            needs two more besides its passes. More vectors mean fewer products. The memory is logged (level info) and
            on the progress bar.
        tolerance (`float`, *optional*, defaults to `1e-4`):
            Stop once all residuals are below this share of their eigenvalues. An eigenvalue's own relative error is
            of the order of the square of this.
        max_products (`int`, *optional*, defaults to `200`):
            Stop at this number of products, converged or not; a warning says which.
        eigenvectors (`bool`, *optional*, defaults to `False`):
            Return them, k more vectors of memory.

    Returns:
        [`Eigenvalues`]

    Raises:
        ValueError: an argument out of range.
        FloatingPointError: a product is not finite.
    """
    check_count("k", k, 1, oracle.dimension, ", the number of parameters")
    size = min(max_vectors or _affordable(oracle, k), oracle.dimension + 1)
    check_count("max_vectors", size, min(k + 2, oracle.dimension + 1), None, " (k + 2)")
    check_count("max_products", max_products, k)
    basis, text = allocate(oracle, size)
    lanczos = _ThickRestart(oracle, basis, k, tolerance)
    with oracle.measuring(), oracle.progress(max_products, f"Lanczos ({text})") as bar:
        while not lanczos.is_done and lanczos.products < max_products:
            lanczos.step()
            bar.update()
    values, residuals, vectors = lanczos.result(eigenvectors)
    if not lanczos.is_done:
        logger.warning(
            f"The eigenvalues have not all converged after {lanczos.products} products (residuals "
            f"{', '.join(f'{r:.1e}' for r in residuals)}, tolerance {tolerance:.1e} of each). Raise max_products or "
            "max_vectors."
        )
    return Eigenvalues(values, residuals, vectors, lanczos.products, lanczos.is_done)


def _affordable(oracle: LossOracle, k: int) -> int:
    bytes_each = oracle.dimension * torch.finfo(oracle.dtype).bits // 8
    return max(k + 3, 8, min(_ROOM // bytes_each, 40))


class _ThickRestart:
    """
    V and T = V ∇²L Vᵀ, grown by one vector a step. All but the last row of `basis` may be columns of T; the last one
    is the direction that comes next.
    """

    def __init__(self, oracle: LossOracle, basis: Tensor, k: int, tolerance: float):
        self.products = 0
        self.is_done = False
        self._oracle, self._basis, self._k, self._tolerance = oracle, basis, k, tolerance
        self._generator = torch.Generator().manual_seed(oracle.seed)
        self._length = 0
        self._matrix = torch.zeros(len(basis) - 1, len(basis) - 1, dtype=torch.float64)
        self._coupling = 0.0
        self._before: Tensor | None = None
        self._ritz = (torch.empty(0, dtype=torch.float64), torch.empty(0, 0, dtype=torch.float64))
        basis[0] = self._start()

    def step(self) -> None:
        """One product; where the room is used up, a restart before it."""
        if self._length == len(self._matrix):
            self._restart()
        at = self._length
        product = self._oracle.hvp(self._basis[at])
        self.products += 1
        if not product.isfinite().all():
            raise FloatingPointError(
                "A Hessian-vector product is not finite: the loss or its gradient overflows here."
            )
        scale = float(product.norm())
        coefficients = orthogonalize(product, self._basis[: at + 1]).double().cpu()
        self._matrix[at, : at + 1] = self._matrix[: at + 1, at] = coefficients
        self._length += 1
        self._coupling = float(product.norm())
        if self._coupling <= 10 * torch.finfo(product.dtype).eps * max(scale, float(self._matrix.abs().max())):
            # An invariant subspace: what is left of the product is rounding
            self._coupling = 0.0
            self._basis[at + 1 : at + 2] = 0 if self._length == self._oracle.dimension else self._new_direction()
        else:
            self._basis[at + 1] = product.div_(self._coupling)
        self._solve()

    def _solve(self) -> None:
        values, vectors = torch.linalg.eigh(self._matrix[: self._length, : self._length])
        self._ritz = values.flip(0), vectors.flip(1)
        complete = self._length == self._oracle.dimension
        if self._coupling == 0:
            # Eigenvectors that the start had no part of lie elsewhere: done once a new direction has found no better
            best, before, self._before = self._ritz[0][: self._k], self._before, self._ritz[0][: self._k]
            unchanged = before is not None and len(before) == self._k and torch.allclose(best, before, rtol=1e-6)
            self.is_done = complete or unchanged
        else:
            bound = self._tolerance * self._ritz[0].abs().clamp(min=self._smallest())
            converged = (self._residuals() <= bound)[: self._k]
            self.is_done = complete or (self._length > self._k and bool(converged.all()))

    def _smallest(self) -> float:
        """Eigenvalues below are rounding, and are not waited for."""
        eps = torch.finfo(self._oracle.dtype).eps
        return 100 * eps / self._tolerance * float(self._ritz[0].abs().max())

    def _residuals(self) -> Tensor:
        return (self._coupling * self._ritz[1][-1]).abs()

    def _restart(self) -> None:
        """Keep the best Ritz vectors, and half of the room for new ones."""
        values, vectors = self._ritz
        keep = min(self._k + max((self._length - self._k) // 2, 0), self._length - 1)
        last = self._basis[self._length].clone()
        transform(self._basis[: self._length], vectors[:, :keep].T.to(self._basis))
        self._basis[keep] = last
        self._matrix.zero_()
        self._matrix[:keep, :keep] = torch.diag(values[:keep])
        self._length = keep

    def _start(self) -> Tensor:
        """
        For λmax alone, half the gradient, which lies mostly in the span of the largest eigenvectors (Gur-Ari, Roberts
        and Dyer, arXiv 1812.04754) and saves products; else, and in the other half, a random direction, which has a
        part of every eigenvector: the last of several decides how many products it takes, and the gradient knows
        little of that one.
        """
        direction = self._new_direction()
        if self._k > 1:
            return direction
        gradient = self._oracle.gradient()
        norm = gradient.norm()
        if norm > 0:
            direction.add_(gradient.div_(norm))
        return direction.div_(direction.norm())

    def _new_direction(self) -> Tensor:
        direction = probe(self._oracle, self._generator)
        direction.div_(direction.norm())
        if self._length:
            orthogonalize(direction, self._basis[: self._length])
        return direction.div_(direction.norm())

    def result(self, with_vectors: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        values, vectors = self._ritz
        rotation = vectors[:, : self._k].T.to(self._basis)
        found = rotation @ self._basis[: self._length] if with_vectors else None
        return values[: self._k].clone(), self._residuals()[: self._k].clone(), found


@dataclass(frozen=True)
class Trace:
    """
    The trace of ∇²L(w).

    Attributes:
        value (`float`): the estimate, the sum of all eigenvalues.
        standard_error (`float`): of the estimate, from the spread of its probes: about 95 % of estimates are within
            two of them, fewer where there are few probes and one eigenvalue outweighs the rest. 0 where the sketch
            holds the whole range.
        samples (`Tensor`): one estimate a probe, of shape `(probes,)`, float64.
        products (`int`): Hessian-vector products that were taken.
    """

    value: float
    standard_error: float
    samples: Tensor
    products: int


@torch.no_grad()
def hessian_trace(oracle: LossOracle, *, sketch: int = 8, probes: int = 24) -> Trace:
    r"""
    The trace by Hutch++ (Meyer, Musco, Musco, Woodruff: "Hutch++: Optimal Stochastic Trace Estimation", SOSA 2021,
    arXiv 2010.09649, algorithm 1), or with `sketch=0` by Hutchinson's estimator.

    Exact on the range Q of the Hessian applied to `sketch` random vectors, and a mean over `probes` random vectors z
    on the rest:  tr(Qᵀ∇²L Q) + mean zᵀ(I − QQᵀ) ∇²L (I − QQᵀ) z,  z of signs.

    Args:
        oracle ([`LossOracle`]):
            The loss.
        sketch (`int`, *optional*, defaults to `8`):
            Columns of Q: vectors stored, each as large as the weights. Two products each.
        probes (`int`, *optional*, defaults to `24`):
            At least 2, for an error estimate; one product each.

    Returns:
        [`Trace`]
    """
    check_count("sketch", sketch, 0)
    check_count("probes", probes, 2)
    sketch = min(sketch, oracle.dimension)
    generator = torch.Generator().manual_seed(oracle.seed)
    basis, text = allocate(oracle, sketch)
    with oracle.measuring(), oracle.progress(2 * sketch + probes, f"Trace ({text})") as bar:
        exact, rank = 0.0, 0
        for _ in range(sketch):
            column = oracle.hvp(probe(oracle, generator, signs=True))
            bar.update()
            scale = float(column.norm())
            orthogonalize(column, basis[:rank])
            norm = float(column.norm())
            if norm > 100 * torch.finfo(column.dtype).eps * scale:  # else it lies in the span already
                basis[rank] = column.div_(norm)
                rank += 1
        for column in basis[:rank]:
            exact += float(torch.dot(column, oracle.hvp(column)))
            bar.update()
        samples = []
        for _ in range(probes):
            z = probe(oracle, generator, signs=True)
            orthogonalize(z, basis[:rank])
            samples.append(exact + float(torch.dot(z, oracle.hvp(z))))
            bar.update()
    values = torch.tensor(samples, dtype=torch.float64)
    return Trace(float(values.mean()), float(values.std() / probes**0.5), values, sketch + rank + probes)

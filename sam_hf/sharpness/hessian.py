"""The largest eigenvalues and the trace of the Hessian, from Hessian-vector products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import logging

from .checks import check_count
from .krylov import ThickRestartLanczos, allocate_basis, orthogonalize, random_vector
from .oracle import LossOracle

logger = logging.get_logger(__name__)

# Bytes of basis vectors by default: with the weights and the passes of 100 M parameters it stays below 8 GiB
_BASIS_BYTES = 4 * 2**30


@dataclass(frozen=True)
class Eigenvalues:
    """
    The largest eigenvalues of ∇²L(w).

    Attributes:
        values (`Tensor`): of shape `(k,)`, float64, largest first, in units of loss per squared unit of weight.
        residuals (`Tensor`): ‖∇²L v − λ v‖₂ of each. An eigenvalue of the Hessian is at most this far away; in
            practice the distance is the residual's square over the gap to the next eigenvalue.
        vectors (`Tensor` or `None`): of shape `(k, P)`, orthonormal, in the order of the oracle's `parameters`.
        products (`int`): the number of Hessian-vector products.
        converged (`bool`): whether every residual is within the tolerance.
    """

    values: Tensor
    residuals: Tensor
    vectors: Tensor | None
    products: int
    converged: bool

    def ratio(self, of: int = 1, to: int = 5) -> float:
        """
        Return λ₁/λ₅, by which the SAM paper (arXiv 2010.01412, section 4.2, figure 3) tells sharp minima from flat.

        Args:
            of (`int`, *optional*, defaults to `1`): the number of the first eigenvalue, counted from 1.
            to (`int`, *optional*, defaults to `5`): the number of the eigenvalue to divide by.
        """
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
    Compute the k largest (most positive) eigenvalues by the Lanczos process with full reorthogonalisation and thick
    restart (Wu and Simon, "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems", SIAM J. Matrix Anal.
    Appl. 22, 2000).

    When `max_vectors` basis vectors are stored, the best approximations are kept and the process continues from them.
    So the memory does not grow with the number of products.

    Args:
        oracle ([`LossOracle`]): the loss.
        k (`int`, *optional*, defaults to `5`): the number of eigenvalues.
        max_vectors (`int`, *optional*): the largest number of stored basis vectors, each as large as the weights; at
            least k + 2. Defaults to as many as fit in 4 GiB, at most 40 and at least max(k + 3, 8): 10 for k = 5 and
            100 M float32 parameters. A product needs two more, in addition to its passes. With more vectors fewer
            products are needed. The memory is logged (level info) and shown on the progress bar.
        tolerance (`float`, *optional*, defaults to `1e-4`): stop once all residuals are below this share of their
            eigenvalues. The relative error of an eigenvalue is of the order of the square of this.
        max_products (`int`, *optional*, defaults to `200`): stop at this number of products. A warning is logged if
            the eigenvalues have not converged by then.
        eigenvectors (`bool`, *optional*, defaults to `False`): return the eigenvectors too, which takes the memory of
            k more vectors.

    Returns:
        `Eigenvalues`: the values, their residuals and the number of products.

    Raises:
        ValueError: an argument is out of range.
        FloatingPointError: a product is not finite.
    """
    check_count("k", k, 1, oracle.dimension, ", the number of parameters")
    size = min(max_vectors or _affordable(oracle, k), oracle.dimension + 1)
    check_count("max_vectors", size, min(k + 2, oracle.dimension + 1), None, " (k + 2)")
    check_count("max_products", max_products, k)
    basis, text = allocate_basis(oracle, size)
    lanczos = ThickRestartLanczos(oracle, basis, k, tolerance)
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
    bytes_per_vector = oracle.dimension * torch.finfo(oracle.dtype).bits // 8
    return max(k + 3, 8, min(_BASIS_BYTES // bytes_per_vector, 40))


@dataclass(frozen=True)
class Trace:
    """
    The trace of ∇²L(w), the sum of all eigenvalues.

    Attributes:
        value (`float`): the estimate.
        standard_error (`float`): the standard error of the estimate, from the spread of its probes. About 95 % of
            estimates are within two of them, and fewer where there are few probes and one eigenvalue outweighs the
            rest. It is 0 where the sketch covers the whole range of the Hessian.
        samples (`Tensor`): one estimate per probe, of shape `(probes,)`, float64.
        products (`int`): the number of Hessian-vector products.
    """

    value: float
    standard_error: float
    samples: Tensor
    products: int


@torch.no_grad()
def hessian_trace(oracle: LossOracle, *, sketch: int = 8, probes: int = 24) -> Trace:
    r"""
    Estimate the trace by Hutch++ (Meyer, Musco, Musco, Woodruff: "Hutch++: Optimal Stochastic Trace Estimation", SOSA
    2021, arXiv 2010.09649, algorithm 1), or with `sketch=0` by Hutchinson's estimator.

    The trace is exact on the range Q of the Hessian applied to `sketch` random vectors, and on the rest a mean over
    `probes` random vectors z of signs:  tr(Qᵀ∇²L Q) + mean zᵀ(I − QQᵀ) ∇²L (I − QQᵀ) z.

    Args:
        oracle ([`LossOracle`]): the loss.
        sketch (`int`, *optional*, defaults to `8`): the number of columns of Q, two products each. Each is a stored
            vector as large as the weights.
        probes (`int`, *optional*, defaults to `24`): the number of vectors z, one product each. At least 2, for an
            error estimate.

    Returns:
        `Trace`: the estimate and its standard error.
    """
    check_count("sketch", sketch, 0)
    check_count("probes", probes, 2)
    sketch = min(sketch, oracle.dimension)
    generator = torch.Generator().manual_seed(oracle.seed)
    basis, text = allocate_basis(oracle, sketch)
    with oracle.measuring(), oracle.progress(2 * sketch + probes, f"Trace ({text})") as bar:
        exact, rank = 0.0, 0
        for _ in range(sketch):
            column = oracle.hvp(random_vector(oracle, generator, signs=True))
            bar.update()
            scale = float(column.norm())
            orthogonalize(column, basis[:rank])
            norm = float(column.norm())
            if norm > 100 * torch.finfo(column.dtype).eps * scale:  # otherwise the span contains it already
                basis[rank] = column.div_(norm)
                rank += 1
        for column in basis[:rank]:
            exact += float(torch.dot(column, oracle.hvp(column)))
            bar.update()
        samples = []
        for _ in range(probes):
            z = random_vector(oracle, generator, signs=True)
            orthogonalize(z, basis[:rank])
            samples.append(exact + float(torch.dot(z, oracle.hvp(z))))
            bar.update()
    values = torch.tensor(samples, dtype=torch.float64)
    return Trace(float(values.mean()), float(values.std() / probes**0.5), values, sketch + rank + probes)

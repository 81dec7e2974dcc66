"""
The Lanczos process on Hessian-vector products, with the random vectors and the orthogonalisation that it needs.

It is written by hand because each vector is as large as the weights: the number of stored vectors must be bounded and
known in advance, and they must lie on the model's device. The libraries that were not used:

- `scipy.sparse.linalg.eigsh` (ARPACK) stores its basis in NumPy arrays, so each product would copy vectors between the
  accelerator and the host. It limits restarts and not products, and where an eigenvalue has not converged it raises an
  error instead of returning residuals.
- curvlinops measures loss_func(model(X), y), which is not the form of Trainer's `compute_loss`. It leaves eigenvalues
  to `eigsh`, runs Lanczos for the density without reorthogonalisation, and gives the trace no standard error.

The tests compare the results with both.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils import logging

from .oracle import LossOracle

logger = logging.get_logger(__name__)

# A basis is transformed this many columns at a time, which avoids a second copy of it
_CHUNK = 1 << 20


def random_vector(oracle: LossOracle, generator: torch.Generator, signs: bool = False) -> Tensor:
    """Return a random vector of shape `(P,)`, normal or of signs, which is the same on every device and process."""
    if signs:
        vector = torch.randint(0, 2, (oracle.dimension,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        return vector.to(oracle.device, oracle.dtype)
    return torch.randn(oracle.dimension, generator=generator, dtype=oracle.dtype).to(oracle.device)


def allocate_basis(oracle: LossOracle, vectors: int) -> tuple[Tensor, str]:
    """Return an empty basis of `vectors` rows and a text with its size, which is logged before it is allocated."""
    size = vectors * oracle.dimension * torch.finfo(oracle.dtype).bits // 8
    amount = f"{size / 2**30:.2f} GiB" if size >= 1 << 27 else f"{size / 2**20:.1f} MiB"
    text = f"{vectors} vectors, {amount}"
    logger.info(f"Storing {text} on {oracle.device} for {oracle.dimension:,} parameters.")
    return torch.empty(vectors, oracle.dimension, dtype=oracle.dtype, device=oracle.device), text


def orthogonalize(vector: Tensor, basis: Tensor) -> Tensor:
    """
    Subtract from `vector`, in place, its projection onto the span of the orthonormal rows of `basis`.

    It is done twice, which is enough for orthogonality to working precision (Giraud, Langou, Rozložník 2005).

    Returns:
        `Tensor`: the coefficients of the projection, of shape `(len(basis),)`.
    """
    coefficients = torch.zeros(len(basis), dtype=vector.dtype, device=vector.device)
    for _ in range(2):
        part = basis @ vector
        vector.addmv_(basis.T, part, alpha=-1)
        coefficients += part
    return coefficients


def tridiagonal_matrix(oracle: LossOracle, start: Tensor, basis: Tensor, steps: int, bar) -> Tensor:
    """
    Return T of the Lanczos process from `start`, in float64. It has `steps` rows, or fewer if the Krylov space is
    smaller. Each step is orthogonalised against the last `len(basis)` vectors.
    """
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    vector = start
    for step in range(steps):
        basis[step % len(basis)] = vector
        product = _finite_product(oracle, vector)
        bar.update()
        scale = float(product.norm())
        coefficients = orthogonalize(product, basis[: step + 1])
        diagonal.append(float(coefficients[step % len(basis)]))
        norm = float(product.norm())
        if step + 1 == steps or norm <= 100 * torch.finfo(product.dtype).eps * max(scale, *map(abs, diagonal)):
            break
        off_diagonal.append(norm)
        vector = product.div_(norm)
    center, off = (torch.tensor(values, dtype=torch.float64) for values in (diagonal, off_diagonal))
    return torch.diag(center) + torch.diag(off, 1) + torch.diag(off, -1)


class ThickRestartLanczos:
    """
    The largest eigenvalues from a basis V and T = V ∇²L Vᵀ, which each step extends by one vector. When the basis is
    full, the best approximations are kept and the process continues from them. `basis` has room for V and for the next
    direction.
    """

    def __init__(self, oracle: LossOracle, basis: Tensor, k: int, tolerance: float):
        self.products = 0
        self.is_done = False
        self._oracle, self._basis, self._k, self._tolerance = oracle, basis, k, tolerance
        self._generator = torch.Generator().manual_seed(oracle.seed)
        self._length = 0
        self._matrix = torch.zeros(len(basis) - 1, len(basis) - 1, dtype=torch.float64)
        self._coupling = 0.0
        self._best = torch.empty(0, dtype=torch.float64)
        self._ritz = (torch.empty(0, dtype=torch.float64), torch.empty(0, 0, dtype=torch.float64))
        basis[0] = self._start()

    def step(self) -> None:
        """Extend the basis by one product, after a restart if it is full."""
        if self._length == len(self._matrix):
            self._restart()
        row = self._length
        product = _finite_product(self._oracle, self._basis[row])
        self.products += 1
        scale = float(product.norm())
        coefficients = orthogonalize(product, self._basis[: row + 1]).double().cpu()
        self._matrix[row, : row + 1] = self._matrix[: row + 1, row] = coefficients
        self._length += 1
        self._coupling = float(product.norm())
        if self._coupling <= 10 * torch.finfo(product.dtype).eps * max(scale, float(self._matrix.abs().max())):
            # The basis spans an invariant subspace: the rest of the product is rounding error
            self._coupling = 0.0
            self._basis[row + 1 : row + 2] = 0 if self._length == self._oracle.dimension else self._new_direction()
        else:
            self._basis[row + 1] = product.div_(self._coupling)
        self._solve()

    def result(self, with_vectors: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return the eigenvalues, their residuals and, if asked for, their vectors."""
        values, vectors = self._ritz
        rotation = vectors[:, : self._k].T.to(self._basis)
        eigenvectors = rotation @ self._basis[: self._length] if with_vectors else None
        return values[: self._k].clone(), self._residuals()[: self._k].clone(), eigenvectors

    def _solve(self) -> None:
        values, vectors = torch.linalg.eigh(self._matrix[: self._length, : self._length])
        self._ritz = values.flip(0), vectors.flip(1)
        complete = self._length == self._oracle.dimension
        if self._coupling == 0:
            # Eigenvectors orthogonal to the start lie outside: stop once a new direction has found no larger value
            previous, self._best = self._best, self._ritz[0][: self._k]
            unchanged = len(previous) == self._k and torch.allclose(self._best, previous, rtol=1e-6)
            self.is_done = complete or unchanged
        else:
            # A residual below the rounding error of the largest eigenvalue need not shrink further
            rounding = 100 * torch.finfo(self._oracle.dtype).eps * float(self._ritz[0].abs().max())
            bound = (self._tolerance * self._ritz[0].abs()).clamp(min=rounding)
            converged = (self._residuals() <= bound)[: self._k]
            self.is_done = complete or (self._length > self._k and bool(converged.all()))

    def _residuals(self) -> Tensor:
        return (self._coupling * self._ritz[1][-1]).abs()

    def _restart(self) -> None:
        """Keep the best Ritz vectors in one half of the free room, and leave the other half for new vectors."""
        values, vectors = self._ritz
        keep = min(self._k + max((self._length - self._k) // 2, 0), self._length - 1)
        last = self._basis[self._length].clone()
        _transform(self._basis[: self._length], vectors[:, :keep].T.to(self._basis))
        self._basis[keep] = last
        self._matrix.zero_()
        self._matrix[:keep, :keep] = torch.diag(values[:keep])
        self._length = keep

    def _start(self) -> Tensor:
        """
        Return the first vector. For k = 1 one half of it is the gradient, which lies mostly in the span of the largest
        eigenvectors (Gur-Ari, Roberts and Dyer, arXiv 1812.04754) and saves products. The rest is a random direction,
        which has a part of every eigenvector. For k > 1 all of it is random: the smallest of the k eigenvalues decides
        the number of products, and the gradient has little of its eigenvector.
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
        direction = random_vector(self._oracle, self._generator)
        direction.div_(direction.norm())
        if self._length:
            orthogonalize(direction, self._basis[: self._length])
        return direction.div_(direction.norm())


def _finite_product(oracle: LossOracle, vector: Tensor) -> Tensor:
    product = oracle.hvp(vector)
    if not product.isfinite().all():
        raise FloatingPointError("A Hessian-vector product is not finite: the loss or its gradient overflows here.")
    return product


def _transform(basis: Tensor, matrix: Tensor) -> None:
    """Overwrite the first rows of `basis` with `matrix` · `basis`."""
    for start in range(0, basis.shape[1], _CHUNK):
        columns = basis[:, start : start + _CHUNK]
        columns[: len(matrix)] = matrix @ columns

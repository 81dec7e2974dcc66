"""What the Krylov methods share: probe vectors, orthogonalisation, and the memory of a basis, said beforehand."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.utils import logging

from .oracle import LossOracle

logger = logging.get_logger(__name__)

# Columns that are worked on at a time where a whole basis is transformed: no second copy of it
_CHUNK = 1 << 20


def check_count(name: str, value: int, least: int, most: int | None = None, why: str = "") -> None:
    if value < least or (most is not None and value > most):
        bounds = f">= {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name}={value}: a number {bounds}{why}")


def probe(oracle: LossOracle, generator: torch.Generator, signs: bool = False) -> Tensor:
    """A random vector of shape `(P,)`, normal or of signs; the same on every device and in every process."""
    if signs:
        vector = torch.randint(0, 2, (oracle.dimension,), generator=generator, dtype=torch.int8).mul_(2).sub_(1)
        return vector.to(oracle.device, oracle.dtype)
    return torch.randn(oracle.dimension, generator=generator, dtype=oracle.dtype).to(oracle.device)


def allocate(oracle: LossOracle, vectors: int) -> tuple[Tensor, str]:
    """Room for a basis of that many vectors, and its size in words, which is logged before it is taken."""
    size = vectors * oracle.dimension * torch.finfo(oracle.dtype).bits // 8
    text = (
        f"{vectors} vectors, {size / 2**30:.2f} GiB"
        if size >= 1 << 27
        else f"{vectors} vectors, {size / 2**20:.1f} MiB"
    )
    logger.info(f"Storing {text} on {oracle.device} for {oracle.dimension:,} parameters.")
    return torch.empty(vectors, oracle.dimension, dtype=oracle.dtype, device=oracle.device), text


def orthogonalize(vector: Tensor, basis: Tensor) -> Tensor:
    """
    Take out of `vector`, in place, what lies in the span of the orthonormal rows of `basis`.

    Twice, which is enough for orthogonality to working precision (Giraud, Langou, Rozložník 2005).

    Returns:
        `Tensor`: the coefficients that were taken out, of shape `(len(basis),)`.
    """
    coefficients = torch.zeros(len(basis), dtype=vector.dtype, device=vector.device)
    for _ in range(2):
        part = basis @ vector
        vector.addmv_(basis.T, part, alpha=-1)
        coefficients += part
    return coefficients


def transform(basis: Tensor, matrix: Tensor) -> None:
    """Overwrite the first rows of `basis` with `matrix` · `basis`, some columns at a time."""
    for start in range(0, basis.shape[1], _CHUNK):
        columns = basis[:, start : start + _CHUNK]
        columns[: len(matrix)] = matrix @ columns

"""Losses with a known Hessian: quadratics by construction, small networks by `torch.func`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from tiny import points
from torch import Tensor, nn

from sam_hf.sharpness import LossOracle


class Quadratic(nn.Module):
    """½ wᵀA w + bᵀw, with one b per example. w consists of two parameters, with 6 and the remaining elements."""

    def __init__(self, matrix: Tensor):
        super().__init__()
        self.register_buffer("matrix", matrix)
        w = torch.randn(len(matrix), generator=torch.Generator().manual_seed(3), dtype=matrix.dtype)
        self.weight = nn.Parameter(w[:6].reshape(2, 3).clone())
        self.bias = nn.Parameter(w[6:].clone())

    def forward(self, b: Tensor) -> dict[str, Tensor]:
        w = torch.cat([self.weight.flatten(), self.bias])
        return {"loss": w @ self.matrix @ w / 2 + (b @ w).mean()}

    def w(self) -> Tensor:
        return torch.cat([self.weight.flatten(), self.bias]).detach().clone()


def symmetric(eigenvalues: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
    """Return a matrix with these eigenvalues and random eigenvectors."""
    values = torch.tensor(list(eigenvalues), dtype=torch.float64)
    square = torch.randn(len(values), len(values), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    rotation = torch.linalg.qr(square).Q
    matrix = rotation @ torch.diag(values) @ rotation.T
    return ((matrix + matrix.T) / 2).to(dtype)


def quadratic(eigenvalues: Sequence[float], examples: int = 6, batch_size: int = 2, **options: Any) -> LossOracle:
    model = Quadratic(symmetric(eigenvalues))
    rows = torch.randn(examples, len(eigenvalues), generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    return LossOracle(model, [{"b": part} for part in rows.split(batch_size)], **({"disable_tqdm": True} | options))


def batch_of(data: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.stack([example[key] for example in data]) for key in data[0]}


def batches_of(data: Sequence[dict[str, Tensor]], size: int) -> list[dict[str, Tensor]]:
    return [batch_of(data[start : start + size]) for start in range(0, len(data), size)]


def oracle_of(model: nn.Module, data: Sequence[dict[str, Tensor]] | None = None, size: int = 4, **options: Any):
    return LossOracle(model, batches_of(data or points(10), size), **({"disable_tqdm": True} | options))


def exact_hessian(model: nn.Module, data: Sequence[dict[str, Tensor]], names: Sequence[str] | None = None) -> Tensor:
    """Return the Hessian of the mean loss over all data, in evaluation mode, for the trained parameters."""
    model = copy.deepcopy(model).eval()
    chosen = {n: p for n, p in model.named_parameters() if (p.requires_grad if names is None else n in names)}
    batch, sizes = batch_of(data), [p.numel() for p in chosen.values()]

    def loss(w: Tensor) -> Tensor:
        parts = w.split(sizes)
        weights = {n: part.view_as(p) for (n, p), part in zip(chosen.items(), parts, strict=True)}
        return torch.func.functional_call(model, weights, (), batch)["loss"]

    w = torch.cat([p.detach().flatten() for p in chosen.values()])
    # Column by column, with reverse mode twice: every layer supports this mode
    point = w.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss(point), point, create_graph=True)
    columns = [torch.autograd.grad(g, point, retain_graph=True)[0] for g in gradient]
    return torch.stack(columns)


def whole_matrix(oracle: LossOracle) -> Tensor:
    return oracle.hvp(torch.eye(oracle.dimension, dtype=oracle.dtype))

r"""
The loss along lines and over planes through the weights.

Directions are lists of one tensor a parameter, in the order of the oracle's `parameters`, or one vector of shape
`(P,)`. Points are w + α d₁ + β d₂; every one is set from w anew, so that rounding does not add up.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..methods import Ascent
from ..update.perturbation import Perturbation
from ..update.perturbed_parameters import plain_name
from .krylov import check_count
from .oracle import LossOracle

State = Mapping[str, Tensor]


def random_directions(oracle: LossOracle, count: int = 2, *, seed: int | None = None) -> Tensor:
    """
    Normal random directions that two models can share.

    A parameter's part depends on its name, its shape and the seed alone: two checkpoints of one architecture get the
    same directions, on any device. Scale them by [`filter_normalized`] of each model before the slices are compared.

    Args:
        oracle ([`LossOracle`]):
            The loss.
        count (`int`, *optional*, defaults to `2`):
            How many.
        seed (`int`, *optional*):
            Defaults to the oracle's.

    Returns:
        `Tensor`: of shape `(count, P)`.
    """
    check_count("count", count, 1)
    seed = oracle.seed if seed is None else seed
    directions = torch.empty(count, oracle.dimension, dtype=oracle.dtype, device=oracle.device)
    for index in range(count):
        for name, part in zip(oracle.parameters, oracle.split(directions[index]), strict=True):
            key = zlib.crc32(f"{seed}/{index}/{plain_name(name)}".encode())
            values = torch.randn(part.shape, generator=torch.Generator().manual_seed(key), dtype=torch.float64)
            part.copy_(values)
    return directions


@torch.no_grad()
def filter_normalized(oracle: LossOracle, directions: Tensor) -> Tensor:
    """
    Directions with each filter scaled to the norm of the model's own filter (Li, Xu, Taylor, Studer, Goldstein:
    "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, arXiv 1712.09913, section 4): slices of models whose
    weights are of another scale become comparable.

    A filter is a row of a matrix, or what belongs to one output channel of a convolution. Biases and the parameters of
    normalisation layers (all of one dimension) stay where they are, as in the authors' code.

    Args:
        directions (`Tensor`): of shape `(P,)` or `(k, P)`; not changed.

    Returns:
        `Tensor`: of the same shape.
    """
    result = directions.clone()
    for row in result.reshape(-1, oracle.dimension):
        for weight, part in zip(oracle.parameters.values(), oracle.split(row), strict=True):
            if weight.dim() < 2:
                part.zero_()
                continue
            norms = part.flatten(1).norm(dim=1).clamp(min=torch.finfo(part.dtype).tiny)
            scale = weight.flatten(1).norm(dim=1) / norms
            part.mul_(scale.view(-1, *[1] * (part.dim() - 1)))
    return result


def direction_between(oracle: LossOracle, state: State) -> Tensor:
    """
    The direction from the oracle's model to another checkpoint, w' − w, of shape `(P,)`: for the axis of a surface
    that two or three models lie on.

    Args:
        state (`Mapping[str, Tensor]`): a state dict of the same architecture.
    """
    other = _plain(state)
    direction = torch.empty(oracle.dimension, dtype=oracle.dtype, device=oracle.device)
    for (name, weight), part in zip(oracle.parameters.items(), oracle.split(direction), strict=True):
        part.copy_(_entry(other, name, weight).to(part) - weight.detach())
    return direction


def loss_slice(oracle: LossOracle, direction: Tensor, alphas: Sequence[float] | Tensor) -> Tensor:
    """
    L(w + α d).

    Args:
        oracle ([`LossOracle`]):
            The loss.
        direction (`Tensor`):
            d, of shape `(P,)`; not changed.
        alphas (`Sequence[float]` or `Tensor`):
            In units of d.

    Returns:
        `Tensor`: of shape `(len(alphas),)`, float64, in units of the loss.
    """
    return loss_surface(oracle, direction.reshape(1, -1), alphas, [0.0])[:, 0]


def loss_surface(
    oracle: LossOracle,
    directions: Tensor,
    alphas: Sequence[float] | Tensor,
    betas: Sequence[float] | Tensor,
) -> Tensor:
    """
    L(w + α d₁ + β d₂).

    Args:
        oracle ([`LossOracle`]):
            The loss.
        directions (`Tensor`):
            d₁ and d₂, of shape `(2, P)`; not changed. They need not be orthogonal.
        alphas, betas (`Sequence[float]` or `Tensor`):
            In units of d₁ and d₂.

    Returns:
        `Tensor`: of shape `(len(alphas), len(betas))`, float64, in units of the loss; infinite or NaN where it is.
    """
    if directions.dim() != 2 or directions.shape[1] != oracle.dimension or len(directions) > 2:
        raise ValueError(f"directions of shape {tuple(directions.shape)}: (2, {oracle.dimension})")
    alphas, betas = torch.as_tensor(alphas).tolist(), torch.as_tensor(betas).tolist()
    if len(directions) == 1 and any(betas):
        raise ValueError(f"betas={betas} without a second direction")
    losses = torch.empty(len(alphas), len(betas), dtype=torch.float64)
    directions = directions.to(oracle.device, oracle.dtype)
    with oracle.measuring(), oracle.progress(losses.numel(), "Loss surface") as bar:
        for i, alpha in enumerate(alphas):
            for j, beta in enumerate(betas):
                point = torch.tensor([alpha, beta][: len(directions)], dtype=oracle.dtype, device=oracle.device)
                with Perturbation() as perturbation:
                    oracle.perturb(perturbation, point @ directions, 1.0)
                    losses[i, j] = oracle.loss()
                bar.update()
    return losses


def loss_between(oracle: LossOracle, state: State, alphas: Sequence[float] | Tensor) -> Tensor:
    """
    The loss on the straight line from the oracle's model (α = 0) to another checkpoint (α = 1), beyond both where α is
    (Goodfellow, Vinyals, Saxe: "Qualitatively characterizing neural network optimization problems", ICLR 2015, arXiv
    1412.6544).

    Every floating-point parameter and buffer of the state dict is interpolated, frozen ones and BatchNorm's running
    statistics included, so that both ends are the checkpoints themselves.

    Args:
        oracle ([`LossOracle`]):
            The loss.
        state (`Mapping[str, Tensor]`):
            A state dict of the same architecture, on any device.
        alphas (`Sequence[float]` or `Tensor`):
            Shares of the way.

    Returns:
        `Tensor`: of shape `(len(alphas),)`, float64, in units of the loss.

    Raises:
        ValueError: the state dict lacks a parameter, or has another shape of it.
    """
    other = _plain(state)
    tensors: list[Tensor] = []
    differences: list[Tensor] = []
    for name, tensor in [*oracle.model.named_parameters(), *oracle.model.named_buffers()]:
        in_state = _find(other, name) is not None
        if not tensor.is_floating_point() or not (in_state or name in oracle.parameters):
            continue  # not persistent, or frozen and not saved, as the base model of adapters
        tensors.append(tensor)
        differences.append(_entry(other, name, tensor).to(tensor) - tensor.detach())
    losses = []
    one = torch.ones((), device=oracle.device)
    with oracle.measuring(), oracle.progress(len(alphas), "Loss between checkpoints") as bar:
        for alpha in torch.as_tensor(alphas).tolist():
            with Perturbation() as perturbation:
                ascent = Ascent([d.clone() for d in differences], one, one, one.bool())
                perturbation.add(tensors, ascent, alpha)
                losses.append(oracle.loss())
            bar.update()
    return torch.tensor(losses, dtype=torch.float64)


def _plain(state: State) -> dict[str, Tensor]:
    return {plain_name(name): tensor for name, tensor in state.items()}


def _find(state: State, name: str) -> Tensor | None:
    """By the model's own name, or as the state dict of a model in DDP has it."""
    name = plain_name(name)
    return state.get(name, state.get(f"module.{name}"))


def _entry(state: State, name: str, like: Tensor) -> Tensor:
    entry = _find(state, name)
    if entry is None or entry.shape != like.shape:
        found = "it is missing" if entry is None else f"shape {tuple(entry.shape)}"
        raise ValueError(
            f"The state dict is not of this model: {name} has shape {tuple(like.shape)} here, {found} there"
        )
    return entry.detach()

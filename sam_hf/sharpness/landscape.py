r"""
The loss along lines and over planes through the weights.

A direction is a vector of shape `(P,)`, in the order of the oracle's `parameters`. Each point w + α d₁ + β d₂ is
computed from w itself, so that rounding errors do not add up.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..methods import Ascent
from ..update.model_structure import plain_name
from ..update.perturbation import Perturbation
from .checks import check, check_count
from .oracle import LossOracle

State = Mapping[str, Tensor]


def random_directions(oracle: LossOracle, count: int = 2, *, seed: int | None = None) -> Tensor:
    """
    Return normal random directions that two models can share.

    The part of a parameter depends only on its name, its shape and the seed: two checkpoints of one architecture get
    the same directions, on any device. Scale them with [`filter_normalized`] for each model to compare their slices.

    Args:
        oracle ([`LossOracle`]): the loss.
        count (`int`, *optional*, defaults to `2`): the number of directions.
        seed (`int`, *optional*): defaults to the oracle's seed.

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
    Scale each filter of the directions to the norm of the model's own filter (Li, Xu, Taylor, Studer, Goldstein:
    "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, arXiv 1712.09913, section 4). This makes slices of
    models comparable whose weights have different scales.

    A filter is a row of a matrix, or what belongs to one output channel of a convolution. Biases and the parameters of
    normalisation layers (all of one dimension) are not moved, as in the authors' code.

    Args:
        oracle ([`LossOracle`]): the loss of the model.
        directions (`Tensor`): of shape `(P,)` or `(k, P)`; not changed.

    Returns:
        `Tensor`: of the same shape.
    """
    result = directions.clone()
    for row in result.reshape(-1, oracle.dimension):
        for weight, part in zip(oracle.weights, oracle.split(row), strict=True):
            if weight.dim() < 2:
                part.zero_()
                continue
            norms = part.flatten(1).norm(dim=1).clamp(min=torch.finfo(part.dtype).tiny)
            scale = weight.flatten(1).norm(dim=1) / norms
            part.mul_(scale.view(-1, *[1] * (part.dim() - 1)))
    return result


def direction_between(oracle: LossOracle, state: State) -> Tensor:
    """
    Return the direction from the oracle's model to another checkpoint, w' − w, of shape `(P,)`. It is an axis for the
    surface through two or three models.

    Args:
        oracle ([`LossOracle`]): the loss of the model.
        state (`Mapping[str, Tensor]`): a state dict of the same architecture.
    """
    other = _plain(state)
    direction = torch.empty(oracle.dimension, dtype=oracle.dtype, device=oracle.device)
    for (name, weight), part in zip(oracle.parameters.items(), oracle.split(direction), strict=True):
        part.copy_(_entry(other, name, weight).to(part) - weight.detach())
    return direction


def loss_slice(oracle: LossOracle, direction: Tensor, alphas: Sequence[float] | Tensor) -> Tensor:
    """
    Compute L(w + α d) for each α.

    Args:
        oracle ([`LossOracle`]): the loss.
        direction (`Tensor`): d, of shape `(P,)`; not changed.
        alphas (`Sequence[float]` or `Tensor`): α, in units of d.

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
    Compute L(w + α d₁ + β d₂) for each α and β.

    Args:
        oracle ([`LossOracle`]): the loss.
        directions (`Tensor`): d₁ and d₂, of shape `(2, P)`; not changed. They need not be orthogonal.
        alphas (`Sequence[float]` or `Tensor`): α, in units of d₁.
        betas (`Sequence[float]` or `Tensor`): β, in units of d₂.

    Returns:
        `Tensor`: of shape `(len(alphas), len(betas))`, float64, in units of the loss. It has infinities and NaN where
            the loss has.
    """
    allowed = directions.dim() == 2 and directions.shape[1] == oracle.dimension and len(directions) <= 2
    check("directions.shape", tuple(directions.shape), allowed, f"(2, {oracle.dimension})")
    alphas, betas = torch.as_tensor(alphas).tolist(), torch.as_tensor(betas).tolist()
    check("betas", betas, len(directions) == 2 or not any(betas), "[0.0] without a second direction")
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
    Compute the loss on the straight line from the oracle's model (α = 0) to another checkpoint (α = 1), or beyond them
    for other α (Goodfellow, Vinyals, Saxe: "Qualitatively characterizing neural network optimization problems", ICLR
    2015, arXiv 1412.6544).

    Every floating-point parameter and buffer of the state dict is interpolated, including frozen ones and the running
    statistics of BatchNorm. So both ends are the checkpoints themselves.

    Args:
        oracle ([`LossOracle`]): the loss.
        state (`Mapping[str, Tensor]`): a state dict of the same architecture, on any device.
        alphas (`Sequence[float]` or `Tensor`): α, as shares of the distance.

    Returns:
        `Tensor`: of shape `(len(alphas),)`, float64, in units of the loss.

    Raises:
        ValueError: a parameter is missing in the state dict, or has another shape there.
    """
    other = _plain(state)
    tensors: list[Tensor] = []
    differences: list[Tensor] = []
    for name, tensor in [*oracle.model.named_parameters(), *oracle.model.named_buffers()]:
        is_saved = _find(other, name) is not None
        if not tensor.is_floating_point() or not (is_saved or name in oracle.parameters):
            continue  # a buffer that is not persistent, or a frozen weight that adapters are saved without
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
    """Return the entry under the model's own name, or under the name it has for a model in DDP."""
    name = plain_name(name)
    return state.get(name, state.get(f"module.{name}"))


def _entry(state: State, name: str, like: Tensor) -> Tensor:
    entry = _find(state, name)
    if entry is None or entry.shape != like.shape:
        problem = "it is missing" if entry is None else f"it has shape {tuple(entry.shape)}"
        raise ValueError(
            f"The state dict is not of this model: {name} has shape {tuple(like.shape)} here, {problem} there."
        )
    return entry.detach()

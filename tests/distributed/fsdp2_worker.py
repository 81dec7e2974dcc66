"""Measures norms, directions and perturbations of parameters that FSDP2 shards over two gloo ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import leave
from torch import nn
from torch.distributed.fsdp import fully_shard

from sam_hf.methods._direction import dual_direction
from sam_hf.tensors.norms import global_dot, global_norm
from sam_hf.update.perturbation import Perturbation

ORDERS = (1.5, 2.0, 3.0, torch.inf)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    # Seven rows over two ranks make shards of unequal size; the bias of one element gives one rank an empty shard
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1)).double()


def gradients_of(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    model(torch.randn(6, 5, generator=generator, dtype=torch.float64)).square().mean().backward()


def full(tensors) -> list[torch.Tensor]:
    return [t.detach().full_tensor() if hasattr(t, "full_tensor") else t.detach().clone() for t in tensors]


def measure(model: nn.Module) -> dict:
    parameters = list(model.parameters())
    gradients_of(model)
    grads = [p.grad for p in parameters]
    before = full(parameters)
    result: dict = {"norms": {order: global_norm(grads, order) for order in ORDERS}, "dot": global_dot(grads, grads)}
    for order in ORDERS:
        with Perturbation() as perturbation:
            perturbation.add(parameters, dual_direction([g.clone() for g in grads], order), 0.3)
            result[f"perturbed {order}"] = full(parameters)
        result[f"restored {order}"] = all(torch.equal(a, b) for a, b in zip(before, full(parameters), strict=True))
    return result


if __name__ == "__main__":
    dist.init_process_group("gloo")
    mesh = dist.device_mesh.init_device_mesh("cpu", (2,))
    sharded = make_model()
    for layer in sharded:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    torch.save(measure(sharded), Path(sys.argv[1]) / f"{dist.get_rank()}.pt")
    leave()

"""Shards (DTensors) beside plain tensors, as adapters beside FSDP2: every method as on plain tensors alone."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from common import PERTURBING
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from sam_hf.methods import METHODS
from sam_hf.update.ascent_window import Window
from sam_hf.update.combining import reuse
from sam_hf.update.groups import GroupSize
from sam_hf.update.runner import Passes
from sam_hf.update.running_means import RunningMeans

OPTIONS = {"wsam": [{}, {"decouple": True}]}
CASES = [(name, options) for name in PERTURBING if name != "msam" for options in OPTIONS.get(name, [{}])]


@pytest.fixture(scope="module")
def mesh():
    """Of this one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def history(name, options, mesh=None, fraction=1.0):
    """Gradients and weights of SAM updates with a plain one between them, of a loss of Σ w⁴/4."""
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    parameters = [nn.Parameter(weight if mesh is None else distribute_tensor(weight, mesh, [Shard(0)]))]
    parameters.append(nn.Parameter(bias))

    def forward_backward(inputs, of, counted):
        for p in parameters:
            gradient = p.detach() ** 3 * len(inputs["x"]) / len(of["x"])
            p.grad = gradient if p.grad is None else p.grad + gradient
        return torch.ones(())

    passes = Passes(
        model=nn.Identity(),
        forward_backward=forward_backward,
        advance_random=lambda batch: None,
        ascent_share=lambda pieces, shared: torch.tensor(fraction, dtype=torch.float64),
        perturbed=parameters,
        all_parameters=parameters,
        own_name=lambda p: "weight" if p is parameters[0] else "bias",
        means=RunningMeans(torch.device("cpu")),
        loss_scale=lambda: torch.tensor(8.0),
    )
    method, optimizer, seen = METHODS[name](**options), torch.optim.SGD(parameters, lr=0.1), []
    for update in range(3):
        method.begin_update(True, 0.0)
        batch = {"x": torch.ones(4, 1)}
        for p in parameters:  # of a window that broke off
            p.grad = torch.full_like(p.detach(), 0.3)
        if update == 1 and method.reuses:
            forward_backward(batch, batch, True)
            reuse(method, passes)
        else:
            Window([batch], method=method, radius=0.5, grouping=GroupSize(), fraction=fraction).step(passes, batch)
        seen += [whole(p.grad).clone() for p in parameters]
        optimizer.step()
        method.after_step(optimizer)
        seen += [whole(p.detach()).clone() for p in parameters]
    return seen


@pytest.mark.parametrize("fraction", [1.0, 0.5])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_equals_plain_tensors(mesh, name, options, fraction):
    plain, mixed = history(name, options, fraction=fraction), history(name, options, mesh, fraction)
    torch.testing.assert_close(mixed, plain, rtol=1e-12, atol=1e-14)

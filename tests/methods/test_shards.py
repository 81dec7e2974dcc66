"""With shards (DTensors) and plain tensors together, every method gives the result of plain tensors."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from common import PERTURBING
from loop_runner import LoopRunner
from torch import nn
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from sam_hf.methods import METHODS
from sam_hf.update.ascent_window import AscentWindow
from sam_hf.update.groups import GroupSize
from sam_hf.update.window import PlainWindow

OPTIONS = {"wsam": [{}, {"decouple": True}]}
CASES = [(name, options) for name in PERTURBING if name != "msam" for options in OPTIONS.get(name, [{}])]


@pytest.fixture(scope="module")
def mesh():
    """Return a mesh of this one process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def history(name, options, mesh=None, fraction=1.0):
    """Return gradients and weights of SAM updates with a plain one between them. The loss is Σ w⁴/4."""
    torch.manual_seed(0)
    weight, bias = torch.randn(4, 3, dtype=torch.float64), torch.randn(5, dtype=torch.float64)
    parameters = [nn.Parameter(weight if mesh is None else distribute_tensor(weight, mesh, [Shard(0)]))]
    parameters.append(nn.Parameter(bias))
    model = nn.Module()
    model.weight, model.bias = parameters

    def forward_backward(inputs, of):
        for p in parameters:
            gradient = p.detach() ** 3 * len(inputs["x"]) / len(of["x"])
            p.grad = gradient if p.grad is None else p.grad + gradient
        return torch.ones(())

    share = torch.tensor(fraction, dtype=torch.float64)
    runner = LoopRunner(model, forward_backward, share=share, scale=torch.tensor(8.0))
    method, optimizer, seen = METHODS[name](**options), torch.optim.SGD(parameters, lr=0.1), []
    for update in range(3):
        method.begin_update(True, 0.0)
        batch = {"x": torch.ones(4, 1)}
        for p in parameters:  # left by a window that broke off
            p.grad = torch.full_like(p.detach(), 0.3)
        if update == 1 and method.reuses:
            window = PlainWindow([batch], method)
        else:
            window = AscentWindow([batch], method=method, radius=0.5, group_size=GroupSize(), fraction=fraction)
        window.step(runner, batch)
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

"""Windows over a sharded model, one level below Trainer, and the loop of one process for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from replicas import flat, sam_gradient
from torch import nn

RANKS = 2
MICRO_BATCH = 4
ACCUMULATION = 3
UPDATES = 4
SAVED_AFTER = 2


@dataclass
class Case:
    m: int | None = None
    steps: int = 1
    adam: bool = False

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        if self.adam:
            return torch.optim.AdamW(model.parameters(), lr=0.02, weight_decay=0.1)
        return torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)


CASES = {
    "window": Case(),
    "m = micro-batch": Case(m=MICRO_BATCH),
    "two ascent steps": Case(steps=2),
    "AdamW": Case(adam=True),
    "AdamW, slices": Case(m=2, adam=True),
}


class Net(nn.Module):
    """Seven rows over two ranks make shards of unequal size; the bias of one element gives one rank an empty shard."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 1))

    def forward(self, x, labels):
        return {"loss": nn.functional.mse_loss(self.layers(x).squeeze(-1), labels)}


def make_model() -> Net:
    torch.manual_seed(0)
    return Net().double()


def windows() -> list[list[list[dict[str, torch.Tensor]]]]:
    """Return the micro-batches as [update][rank][micro-batch]."""
    generator = torch.Generator().manual_seed(1)
    shape = (UPDATES, RANKS, ACCUMULATION, MICRO_BATCH)
    x = torch.randn(*shape, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return [
        [[{"x": x[u, r, i], "labels": y[u, r, i]} for i in range(ACCUMULATION)] for r in range(RANKS)]
        for u in range(UPDATES)
    ]


def single_process(case: Case) -> dict[str, torch.Tensor]:
    """Return the gradients and weights of each update, with torch's optimizer over whole weights."""
    model = make_model()
    optimizer = case.make_optimizer(model)
    history: dict[str, list[torch.Tensor]] = {"gradients": [], "weights": []}
    for window in windows():
        weights = flat(model)
        total = sam_gradient(model, weights, window, MICRO_BATCH, m=case.m, synchronised=True, steps=case.steps)
        nn.utils.vector_to_parameters(weights, model.parameters())
        sizes = [p.numel() for p in model.parameters()]
        for parameter, part in zip(model.parameters(), total.split(sizes), strict=True):
            parameter.grad = part.view_as(parameter).clone()
        optimizer.step()
        history["gradients"].append(total)
        history["weights"].append(flat(model))
    return {name: torch.stack(values) for name, values in history.items()}

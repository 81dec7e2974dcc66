"""Every method on a model sharded with FSDP2 equals it in one process, with one perturbation for all ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import reference
import torch

sys.path.insert(0, str(Path(__file__).parent))
from fsdp2_method_worker import METHODS, MOMENTUM
from fsdp2_trainer_cases import ACCUMULATION, MICRO_BATCH, RANKS, UPDATES, Case, dataset, load_model
from reference_methods import Run
from replicas import LEARNING_RATE, RHO, flat
from tiny import loss_of

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def folder(torchrun) -> Path:
    return torchrun("fsdp2_method_worker.py")


def expected(folder: Path, name: str) -> torch.Tensor:
    settings = dict(METHODS[name])
    model = load_model(folder / "model", Case())
    masks = {None: "", "norm": "norm"}
    part = masks[settings.pop("targets", None)]
    run = Run(
        loss_of(model),
        flat(model),
        reference.SGD(MOMENTUM),
        MICRO_BATCH,
        UPDATES,
        LEARNING_RATE,
        RHO,
        mask=torch.cat([torch.full((p.numel(),), part in name) for name, p in model.named_parameters()]),
        scaled=torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.bool),  # all have the name weight
        synchronised=True,
        **settings,
    )
    data = dataset()
    batches = [data[i : i + MICRO_BATCH] for i in range(0, len(data), MICRO_BATCH)]
    weights = []
    for start in range(0, len(batches), RANKS * ACCUMULATION):
        window = batches[start : start + RANKS * ACCUMULATION]
        run.update([reference.mean_of_means(window[rank::RANKS]) for rank in range(RANKS)], LEARNING_RATE)
        weights.append(run.w)
    return torch.stack(weights)


@pytest.mark.parametrize("name", METHODS)
def test_equals_one_process(folder, name):
    weights = expected(folder, name)
    for rank in range(RANKS):
        found = torch.load(folder / f"{name}-{rank}.pt")["weights"]
        torch.testing.assert_close(found, weights, rtol=1e-9, atol=1e-12)

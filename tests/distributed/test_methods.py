"""Every method on two real ranks equals the reference that computes both, resumes, and writes the right files."""

from __future__ import annotations

import pytest
import reference
import torch
from ddp_cases import dataset
from method_cases import CASES, LEARNING_RATE, MICRO_BATCH, MOMENTUM, RESUMED, UPDATES, make_model
from reference_methods import Run
from replicas import flat
from tiny import loss_of

pytestmark = pytest.mark.distributed
RANKS, ACCUMULATION = 2, 2


@pytest.fixture(scope="module")
def out(torchrun):
    return torchrun("method_worker.py")


@pytest.fixture(scope="module")
def results(out):
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(RANKS)] for name in CASES}


def windows():
    """Return micro-batches as [update][rank]. The ranks get batches in turn, as accelerate distributes them."""
    data = dataset(RANKS * MICRO_BATCH * ACCUMULATION * UPDATES)
    batches = [data[i : i + MICRO_BATCH] for i in range(0, len(data), MICRO_BATCH)]
    per_update = [batches[i : i + RANKS * ACCUMULATION] for i in range(0, len(batches), RANKS * ACCUMULATION)]
    return [[reference.mean_of_means(window[rank::RANKS]) for rank in range(RANKS)] for window in per_update]


def coordinates(model, chosen):
    return torch.cat([torch.full((p.numel(),), chosen(name)) for name, p in model.named_parameters()])


def expected(name):
    case, model = dict(CASES[name]), make_model()
    targets = case.pop("targets", None)
    mask = coordinates(model, lambda n: n.split(".")[0] in targets) if targets else None
    run = Run(
        loss_of(model),
        flat(model),
        reference.SGD(momentum=MOMENTUM),
        MICRO_BATCH,
        UPDATES,
        LEARNING_RATE,
        mask=mask,
        scaled=coordinates(model, lambda n: "weight" in n.split(".")[-1]),
        **case,
    )
    for window in windows():
        run.update(window, LEARNING_RATE)
    return run.w


@pytest.mark.parametrize("name", CASES)
def test_equals_the_reference(results, name):
    weights = expected(name)
    for rank in range(RANKS):
        torch.testing.assert_close(results[name][rank]["whole"], weights, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_ranks_make_the_same_steps(results, name):
    first, second = (result["whole"] for result in results[name])
    assert torch.equal(first, second)


@pytest.mark.parametrize("name", RESUMED)
def test_resumed_run_ends_bit_for_bit_the_same(results, name):
    for result in results[name]:
        assert torch.equal(result["resumed"], result["whole"])


@pytest.mark.parametrize("name", RESUMED)
def test_each_rank_keeps_what_differs(out, name):
    tensors = sorted(p.name for p in (out / name.replace(" ", "_") / "checkpoint-3").glob("sam_state*.safetensors"))
    own = "synchronised" not in name and not name.startswith("looksam")
    assert len(tensors) == (RANKS if own else 1)

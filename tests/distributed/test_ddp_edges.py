"""Replicas that differ from each other equal one process that computes each in turn, and end with the same weights."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from ddp_edges import CASES, FAR, MICRO_BATCH, make_model, make_tagger
from replicas import LEARNING_RATE, RHO, flat, split, train, windows_of

pytestmark = pytest.mark.distributed
RANKS = 2
EXACT = [name for name, case in CASES.items() if case.exact]


@pytest.fixture(scope="module")
def results(torchrun) -> dict[str, list[dict]]:
    out = torchrun("ddp_edges_worker.py")
    names = [*CASES, "tagger True", "tagger False", "tagger, shares"]
    return {name: [torch.load(out / f"{name}-{rank}.pt") for rank in range(RANKS)] for name in names}


@pytest.mark.parametrize("name", EXACT)
def test_equals_one_process(results, name):
    case = CASES[name]
    expected = train(
        partial(make_model, case.parts),
        windows_of(results[name]),
        MICRO_BATCH,
        m=case.m,
        synchronised=case.synchronised,
        steps=case.arguments.get("sam_ascent_steps", 1),
        unperturbed=[(1, 1)] if case.not_finite else [],
    )
    for rank in results[name]:
        torch.testing.assert_close(rank["weights"], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", list(CASES))
def test_ranks_end_with_identical_weights(results, name):
    first, second = (rank["weights"] for rank in results[name])
    assert torch.equal(first.nan_to_num(nan=123.0), second.nan_to_num(nan=123.0))


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        # Ascent and descent passes in order, counted from 0: a₁ a₂ a₃ d₁ d₂ d₃ with one perturbation per window,
        # a₁ d₁ a₂ d₂ a₃ d₃ with one per micro-batch
        ("unused", {5}),
        ("unused, synchronised", {2, 5}),
        ("bucket views", {5}),
        ("unused, m = micro-batch", {0, 2, 4, 5}),
        ("bucket views, slices", {0, 2, 4, 6, 8, 10, 11}),
        ("bucket views, each batch", {1, 3, 5}),
        ("each batch, two steps", set(range(9))),
        ("compiled", {5}),
    ],
)
def test_only_these_passes_reduce_gradients(results, name, passes):
    for rank in results[name]:
        whole = [p for p, window in zip(rank["reductions"], rank["windows"], strict=True) if len(window) == 3]
        assert whole == [passes] * 3


@pytest.mark.parametrize("name", ["uneven, slices", "uneven, synchronised"])
def test_the_last_batch_of_one_rank_is_smaller(results, name):
    sizes = [{len(batch["labels"]) for window in rank["windows"] for batch in window} for rank in results[name]]
    assert sizes == [{MICRO_BATCH}, {2, MICRO_BATCH}]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if "unused" in case.parts])
def test_what_no_rank_used_has_no_gradient(results, name):
    used = [
        any((batch["x"][:, 0] > FAR).any() for batches in window for batch in batches)
        for window in windows_of(results[name])
    ]
    assert True in used and False in used
    unused = {"unused.weight", "unused.bias"}
    expected = [unused if extra else unused | {"extra.weight", "extra.bias"} for extra in used]
    for rank in results[name]:
        assert rank["without_gradient"] == expected


@pytest.mark.parametrize("name", [name for name in CASES if "statistics" in name])
def test_running_statistics_follow_the_ascent_passes_from_what_rank_0_broadcast(results, name):
    case = CASES[name]
    model = make_model(case.parts)
    weights, broadcast = flat(model), dict(model.named_buffers())
    for update, window in enumerate(windows_of(results[name])):
        for rank in reversed(range(RANKS)):  # rank 0 last: the next update starts with its statistics
            replica = make_model(case.parts).train()
            torch.nn.utils.vector_to_parameters(weights, replica.parameters())
            replica.load_state_dict(broadcast, strict=False)
            for group in split(window[rank], case.m, MICRO_BATCH):
                for _, batch in group:
                    replica(**batch)
            expected = dict(replica.named_buffers())
            torch.testing.assert_close(results[name][rank]["statistics"][update], expected, rtol=1e-9, atol=1e-12)
        weights, broadcast = results[name][0]["weights"][update], expected


def test_not_a_number_on_one_rank_reaches_all(results):
    weights = results["NaN in all passes"][0]["weights"]
    assert weights[0].isfinite().all()
    assert weights[1].isnan().all()


def test_ranks_ask_together_whether_the_loss_is_a_mean(results):
    assert (results["tagger True"][0]["windows"][0][0]["labels"] == -100).all()
    for rank in range(RANKS):
        assert torch.equal(results["tagger True"][rank]["weights"], results["tagger False"][rank]["weights"])


def test_a_shared_ascent_gradient_is_the_mean_over_the_ascent_examples_of_all_ranks(results):
    """Each rank has another share of its labels in them. All must use one share, or the replicas would diverge."""
    model = make_tagger(False)
    gamma = 0.9

    def gradient(weights, batches):
        torch.nn.utils.vector_to_parameters(weights, model.parameters())
        labels = torch.cat([batch["labels"] for batch in batches])
        loss = model(torch.cat([batch["x"] for batch in batches]), labels, (labels != -100).sum())["loss"]
        return torch.cat([part.flatten() for part in torch.autograd.grad(loss, list(model.parameters()))])

    weights = flat(model)
    for update, window in enumerate(windows_of(results["tagger, shares"])):
        g = gradient(weights, [batches[0] for batches in window])
        s = gradient(weights + RHO * g / g.norm(), [batch for batches in window for batch in batches])
        weights = weights - LEARNING_RATE * (g + gamma / (1 - gamma) * (s - g))
        for rank in results["tagger, shares"]:
            torch.testing.assert_close(rank["weights"][update], weights, rtol=1e-9, atol=1e-12)

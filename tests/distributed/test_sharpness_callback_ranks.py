"""Sharpness at every evaluation of a DDP run is the same on both ranks as in one process, and changes no training."""

from __future__ import annotations

import pytest
import sharpness_callback_worker as worker
import torch
from tiny import assert_same, points, trainer_of

pytestmark = pytest.mark.distributed
VALUES = ("eval_sharpness_lambda_max", "eval_sharpness_m")


@pytest.fixture(scope="module")
def results(torchrun):
    out = torchrun("sharpness_callback_worker.py")
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("case", worker.CASES)
def test_training_is_the_same_on_both_ranks(results, case):
    for rank in results:
        measured, plain = rank[case, True], rank[case, False]
        assert len(measured["weights"]) == len(plain["weights"]) == 4
        for found, expected in zip(measured["weights"], plain["weights"], strict=True):
            assert_same(found, expected)
        assert not any(value in metrics for metrics in plain["returned"] for value in VALUES)


@pytest.mark.parametrize("case", worker.CASES)
def test_both_ranks_report_the_same(results, case):
    first, second = (rank[case, True]["returned"] for rank in results)
    for one, other in zip(first, second, strict=True):
        assert [one[value] for value in VALUES] == [other[value] for value in VALUES]
    logged = [[e for e in rank[case, True]["logged"] if VALUES[0] in e] for rank in results]
    assert [e[VALUES[0]] for e in logged[0]] == [e[VALUES[0]] for e in logged[1]] == [m[VALUES[0]] for m in first]


@pytest.mark.parametrize("case", ["sam", "shared"])
def test_it_is_the_value_of_one_process(results, case, tmp_path):
    for weights, metrics in zip(results[0][case, True]["weights"], results[0][case, True]["returned"], strict=True):
        model = worker.model(case)
        model.load_state_dict(weights)
        trainer = trainer_of(
            model, points(worker.EXAMPLES), tmp_path, callbacks=[worker.callback()], eval_dataset=points(8)
        )
        alone = trainer.evaluate()
        assert [metrics[v] for v in VALUES] == pytest.approx([alone[v] for v in VALUES], rel=1e-8)


def test_ranks_keep_their_own_running_statistics(results):
    first, second = (rank["BatchNorm", True]["weights"][-1] for rank in results)
    assert not torch.equal(first["middle.running_mean"], second["middle.running_mean"])

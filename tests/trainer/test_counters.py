"""Counters of other trainers are set aside by reference and put back, and only where they are those trainers' own."""

from __future__ import annotations

from collections import defaultdict

import pytest

from sam_hf.compat import uncounted


def counting(module: str):
    """A trainer with counters by the names of TRL and sentence-transformers, of a class defined in `module`."""
    trainer = type("Counting", (), {"__module__": module})()
    trainer._metrics = {"train": defaultdict(list, {"entropy": [1.0]})}
    trainer._total_train_tokens = 7
    trainer.accum_loss_components = {"train": {"size": 2.0}, "eval": {}}
    return trainer


def count(trainer):
    trainer._metrics["train"]["entropy"].append(5.0)
    trainer._metrics["train"]["num_tokens"] = [trainer._total_train_tokens]
    trainer._total_train_tokens += 3
    components = trainer.accum_loss_components["train"]
    components["size"] = components.get("size", 0.0) + 1.0


@pytest.mark.parametrize("module", ["trl.trainer.sft_trainer", "sentence_transformers.base.trainer"])
def test_counters_are_put_back_whatever_a_pass_does(module):
    trainer = counting(module)
    before = dict(vars(trainer))
    with uncounted(trainer):
        count(trainer)
        assert trainer._metrics["train"]["entropy"] == [5.0]
    with pytest.raises(KeyboardInterrupt), uncounted(trainer):
        count(trainer)
        raise KeyboardInterrupt
    # The same objects, so nothing that grows with the run was copied
    assert all(value is before[name] for name, value in vars(trainer).items())
    assert trainer._metrics == {"train": {"entropy": [1.0]}}
    assert trainer._total_train_tokens == 7
    assert trainer.accum_loss_components["train"] == {"size": 2.0}


def test_attributes_of_a_users_own_trainer_are_left_alone():
    trainer = counting("training.trainer")
    with uncounted(trainer):
        count(trainer)
    assert trainer._metrics["train"] == {"entropy": [1.0, 5.0], "num_tokens": [7]}
    assert trainer._total_train_tokens == 10
    assert trainer.accum_loss_components["train"] == {"size": 3.0}


def test_nothing_is_added_to_a_trainer_without_counters():
    trainer = type("Bare", (), {"__module__": "trl"})()
    with uncounted(trainer):
        pass
    assert vars(trainer) == {}

"""Private attributes of other packages: counters are set aside and put back, and every attribute is still there."""

from __future__ import annotations

from collections import defaultdict

import pytest
from accelerate.state import GradientState
from causal import llama, texts, tokenizer
from tiny import bert, sentences, trainer_of
from transformers import Trainer

from sam_hf.compat import loss_shifts_labels, uncounted


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


def test_trainer_knows_which_losses_shift_their_labels(tmp_path):
    for model, data, shifts in ((llama(), texts(8), True), (bert(), sentences(8), False)):
        trainer = trainer_of(model, data, tmp_path, trainer_class=Trainer)
        assert loss_shifts_labels(trainer) is shifts


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        (Trainer, "_prepare_inputs _maybe_log_save_evaluate _save_checkpoint _save _push_from_checkpoint"),
        (Trainer, "_save_optimizer_and_scheduler _load_optimizer_and_scheduler _finish_current_push"),
        (Trainer, "_get_num_items_in_batch"),
        (GradientState, "_set_sync_gradients"),
    ],
)
def test_private_names_that_the_package_uses_are_there(owner, names):
    """Nothing would fail without some of them: an override that is never called is silent."""
    assert not [name for name in names.split() if not hasattr(owner, name)]


def test_trl_counts_in_the_attributes_that_are_set_aside(tmp_path):
    trl = pytest.importorskip("trl")
    args = trl.SFTConfig(str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_length=None)
    trainer = trl.SFTTrainer(model=llama(), args=args, train_dataset=texts(8), processing_class=tokenizer())
    assert {"_metrics", "_total_train_tokens"} <= vars(trainer).keys()

"""The arguments that a trainer uses: those it was given, or one object with the defaults."""

from __future__ import annotations

from tiny import perceptron, points
from transformers import TrainingArguments

from sam_hf import SAMTrainer, SAMTrainingArguments


def test_fields_of_the_defaults_can_be_set(tmp_path):
    """With plain TrainingArguments, an assignment to a field of `sam_args` holds, and training uses it."""
    settings = {"use_cpu": True, "max_steps": 1, "report_to": "none", "save_strategy": "no", "logging_steps": 1}
    trainer = SAMTrainer(
        model=perceptron(), args=TrainingArguments(str(tmp_path), **settings), train_dataset=points(8)
    )
    trainer.sam_args.sam_rho = 0.125
    assert trainer.sam_args.sam_rho == 0.125
    trainer.train()
    assert trainer.state.log_history[0]["sam_rho"] == 0.125


def test_arguments_that_have_the_fields_are_used_themselves(tmp_path):
    trainer = SAMTrainer(model=perceptron(), args=SAMTrainingArguments(str(tmp_path), use_cpu=True, report_to="none"))
    assert trainer.sam_args is trainer.args

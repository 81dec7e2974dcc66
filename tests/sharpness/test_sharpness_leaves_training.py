"""Training with sharpness at evaluations is the same as training without, bit for bit."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from measured_training import NAMES, STEPS, built, entries, of_sharpness
from peft import LoraConfig, get_peft_model
from tiny import assert_same, bert, perceptron, points, sentences, snapshot, trained
from torch import nn

from sam_hf import SharpnessCallback
from sam_hf.update.random_state import RandomState


def lora():
    model = bert(dropout=0.1)
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.1)).double()


class Draws(nn.Module):
    """Dropout that draws from every generator, also in evaluation mode."""

    def forward(self, x):
        return x * (1 + 0.1 * random.random() + 0.1 * np.random.rand() + 0.1 * torch.rand(()).to(x))


class Augmented(torch.utils.data.Dataset):
    def __len__(self):
        return 32

    def __getitem__(self, index):
        example = points(32)[index]
        return {**example, "x": example["x"] + 0.1 * torch.randn(5).double() + 0.1 * random.random()}


CASES = {
    "sam": ({}, lambda: perceptron(dropout=0.2), None),
    "plain": ({"sam_method": "none", "optim": "adamw_torch"}, lambda: perceptron(dropout=0.2), None),
    "shuffled": ({"train_sampling_strategy": "random", "num_train_epochs": 1}, perceptron, None),
    "BatchNorm": ({"gradient_accumulation_steps": 2}, lambda: perceptron(lambda: nn.BatchNorm1d(6)), None),
    "random": ({}, lambda: perceptron(Draws), None),
    "augmented": ({}, perceptron, Augmented()),
    "looksam": ({"sam_method": "looksam", "eval_steps": 1}, perceptron, None),
    "bert": (
        {"gradient_checkpointing": True, "include_num_input_tokens_seen": "all"},
        lambda: bert(dropout=0.1),
        sentences(32),
    ),
    "lora": ({"gradient_accumulation_steps": 2}, lora, sentences(32)),
    "schedule-free": ({"optim": "schedule_free_adamw", "learning_rate": 0.01}, perceptron, None),
}


@pytest.mark.parametrize(("options", "make", "data"), CASES.values(), ids=CASES)
def test_training_is_the_same_bit_for_bit(tmp_path, options, make, data):
    def run(*callbacks):
        model = make()
        trainer = trained(
            model,
            points(32) if data is None else data,
            tmp_path,
            callbacks=callbacks,
            eval_dataset=sentences(8) if data is not None and isinstance(data, list) else points(8),
            **(STEPS | {"save_strategy": "steps", "save_steps": 3} | options),
        )
        return model, trainer, RandomState()

    plain, expected, random_after = run()
    model, trainer, found = run(SharpnessCallback(max_examples=6, m=3))
    assert all(of_sharpness(entry).keys() == NAMES for entry in entries(trainer))
    assert_same(snapshot(model), snapshot(plain))
    assert found == random_after
    assert [m.training for m in model.modules()] == [m.training for m in plain.modules()]
    assert all(p.grad is None for p in model.parameters())
    assert trainer.state.total_flos == expected.state.total_flos
    assert trainer.state.num_input_tokens_seen == expected.state.num_input_tokens_seen
    for entry, other in zip(trainer.state.log_history, expected.state.log_history, strict=True):
        timed = {key for key in entry if key.endswith(("_runtime", "_per_second"))} | NAMES
        assert {k: v for k, v in entry.items() if k not in timed} == {k: v for k, v in other.items() if k not in timed}


def test_training_resumes_the_same(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 3}
    whole = built(tmp_path, SharpnessCallback(max_examples=6), **options)
    whole.train()
    again = built(tmp_path, SharpnessCallback(max_examples=6), **options)
    again.train(resume_from_checkpoint=str(Path(tmp_path) / "checkpoint-3"))
    assert_same(snapshot(again.model), snapshot(whole.model))
    last, expected = entries(again)[-1], entries(whole)[-1]
    assert last["eval_sharpness_lambda_max"] == expected["eval_sharpness_lambda_max"]

"""SAM in TRL's SFTTrainer makes the updates of a hand-written loop, and counts TRL's own metrics once."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from causal import conversations, llama, logged, run, texts, tokenizer
from reference import SGD, train
from tiny import assert_same, flat, relative_difference, snapshot, windows_of

from sam_hf import SAMArguments, SAMMixin

trl = pytest.importorskip("trl")

PLAIN = (trl.SFTTrainer, trl.SFTConfig)


class SAMSFTTrainer(SAMMixin, trl.SFTTrainer):
    pass


@dataclass
class SAMSFTConfig(SAMArguments, trl.SFTConfig):
    pass


SAM = (SAMSFTTrainer, SAMSFTConfig)
METRICS = ("loss", "entropy", "mean_token_accuracy", "num_tokens")


@pytest.mark.parametrize("data", [texts(16), conversations(16)], ids=["text", "conversations"])
def test_plain_trainer_at_vanishing_rho(tmp_path, data):
    expected, model = llama(), llama()
    plain = run(PLAIN, expected, data, tmp_path, gradient_accumulation_steps=2)
    sam = run(SAM, model, data, tmp_path, gradient_accumulation_steps=2, sam_rho=1e-12)
    torch.testing.assert_close(torch.tensor(logged(sam, *METRICS)), torch.tensor(logged(plain, *METRICS)))
    torch.testing.assert_close(flat(model), flat(expected), rtol=1e-7, atol=1e-9)


def token_losses(model):
    """Return a function of w and token ids that gives the sum of the losses of the tokens after the first."""

    def loss(w, ids):
        names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)
        parts = w.split([shape.numel() for shape in shapes])
        weights = {name: part.view(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        logits = torch.func.functional_call(model, weights, (ids.unsqueeze(0),)).logits[0]
        return torch.nn.functional.cross_entropy(logits[:-1], ids[1:], reduction="sum")

    return loss


def per_token(window):
    """Return each micro-batch of the window with weights that make the mean over all of its tokens with a target."""
    total = sum(len(ids) - 1 for micro_batch in window for ids in micro_batch)
    return [[(ids, 1 / total) for ids in micro_batch] for micro_batch in window]


@pytest.mark.parametrize("m, k, p", [(None, 1, 2.0), (None, 2, 3.0), (4, 1, 2.0), (2, 2, 2.0)])
def test_updates_of_a_hand_written_loop(tmp_path, m, k, p):
    data, model = texts(16), llama()
    start = flat(model)
    options = {"sam_rho": 0.2, "sam_m": m, "sam_ascent_steps": k, "sam_p": p}
    run(SAM, model, data, tmp_path, gradient_accumulation_steps=2, **options)
    ids = [torch.tensor(tokenizer()(row["text"] + " <eos>").input_ids) for row in data]
    windows = [per_token(window) for window in windows_of(ids, 4, 2, 3)]
    expected, _ = train(token_losses(llama()), start, windows, SGD(), [0.05] * 3, 4, rho=0.2, m=m, k=k, p=p)
    # TRL's head computes in float32 for every type of weights
    assert relative_difference(flat(model) - start, expected - start) < 2e-6
    plain, _ = train(token_losses(llama()), start, windows, SGD(), [0.05] * 3, 4, rho=0.0)
    assert relative_difference(expected - start, plain - start) > 0.05


def test_accumulated_micro_batches_are_the_large_batch(tmp_path):
    data, accumulated, whole = texts(24), llama(), llama()
    run_of = {"sam_rho": 0.2, "max_steps": 3}
    four = run(
        SAM, accumulated, data, tmp_path, gradient_accumulation_steps=4, per_device_train_batch_size=2, **run_of
    )
    one = run(SAM, whole, data, tmp_path, gradient_accumulation_steps=1, per_device_train_batch_size=8, **run_of)
    torch.testing.assert_close(flat(accumulated), flat(whole), rtol=1e-6, atol=1e-7)
    # Each word and the end of each text count once
    tokens = sum(len(row["text"].split()) + 1 for row in data)
    assert logged(four, "num_tokens")[-1] == logged(one, "num_tokens")[-1] == [tokens]


@pytest.mark.parametrize(
    "options",
    [{}, {"sam_ascent_steps": 3}, {"sam_m": 4}, {"sam_m": 2}, {"sam_m": 2, "attention_dropout": 0.3}],
    ids=str,
)
def test_metrics_are_those_of_one_pass(tmp_path, options):
    """With a learning rate of 0 each pass at w equals that of plain training. Passes at w + ε must not be counted."""
    options = dict(options)
    dropout = options.pop("attention_dropout", 0.0)
    common = {"gradient_accumulation_steps": 2, "learning_rate": 0.0, "logging_steps": 2, "max_steps": 4}
    plain = run(PLAIN, llama(dropout=dropout), texts(16), tmp_path, **common)
    sam = run(SAM, llama(dropout=dropout), texts(16), tmp_path, sam_rho=1.0, **common, **options)
    assert logged(sam, "num_tokens") == logged(plain, "num_tokens")
    assert sam._total_train_tokens == plain._total_train_tokens > 0
    assert abs(logged(sam, "sam_sharpness")[0][0]) > 0.1
    if options.get("sam_m") != 2:
        assert logged(sam, *METRICS) == logged(plain, *METRICS)
    assert not any(sam._metrics["train"].values())


def test_resumed_training_is_uninterrupted_training(tmp_path):
    options = {"sam_rho": 0.2, "gradient_accumulation_steps": 2, "max_steps": 4, "optim": "adamw_torch"}
    options |= {"learning_rate": 0.01, "save_strategy": "steps", "save_steps": 2, "logging_steps": 2}
    whole, resumed = llama(dropout=0.3), llama(dropout=0.3)
    run(SAM, whole, texts(32), tmp_path, **options)
    trainer = run(SAM, resumed, texts(32), tmp_path, resume_from_checkpoint=str(tmp_path / "checkpoint-2"), **options)
    assert trainer.state.global_step == 4
    assert_same(snapshot(resumed), snapshot(whole))

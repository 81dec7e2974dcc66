"""SAM in Seq2SeqTrainer with T5 makes the updates of a hand-written loop, and generation does not change training."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from causal import run_with
from tiny import assert_same, flat, relative_difference, sentences, snapshot
from transformers import Seq2SeqTrainer, T5Config, T5ForConditionalGeneration

from sam_hf import SAMSeq2SeqTrainer, SAMSeq2SeqTrainingArguments


def t5(dropout: float = 0.0) -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "d_model": 8, "d_kv": 4, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    config = T5Config(**sizes, dropout_rate=dropout, decoder_start_token_id=0, initializer_factor=0.5)
    model = T5ForConditionalGeneration(config).double()
    model.generation_config.max_length = 5
    return model


def reversals(size: int) -> list[dict[str, torch.Tensor]]:
    """Return targets of different lengths, so that a mean over tokens is not a mean over examples."""
    rows = []
    for i, example in enumerate(sentences(size)):
        labels = example["input_ids"].flip(0).clone()
        labels[4 - i % 3 :] = -100
        rows.append({"input_ids": example["input_ids"], "labels": labels})
    return rows


def seq2seq(model, data, output_dir, trainer_class=SAMSeq2SeqTrainer, **changes):
    options = {"predict_with_generate": True, "sam_rho": 0.2, "eval_dataset": data[:4]} | changes
    return run_with((trainer_class, SAMSeq2SeqTrainingArguments), model, data, output_dir, **options)


def sum_of_means(model, data, accumulation):
    """Return the loss that Trainer makes of T5. T5 gets `num_items_in_batch` and ignores it, so means are added up."""
    size = len(data) // accumulation
    return torch.stack([token_mean(model, data[i : i + size]) for i in range(0, len(data), size)]).sum()


def token_mean(model, data):
    total = sum(int((example["labels"] != -100).sum()) for example in data)
    logits = [model(input_ids=e["input_ids"][None], labels=e["labels"][None]).logits[0] for e in data]
    losses = [
        torch.nn.functional.cross_entropy(row, e["labels"], reduction="sum")
        for row, e in zip(logits, data, strict=True)
    ]
    return torch.stack(losses).sum() / total


@pytest.mark.parametrize("accumulation", [1, 2])
def test_update_of_a_hand_written_loop(tmp_path, accumulation):
    data, model = reversals(8), t5()
    start, perturbed = flat(model), copy.deepcopy(model)
    batch = {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    trainer = seq2seq(model, data, tmp_path, max_steps=1, **batch)
    assert isinstance(trainer, Seq2SeqTrainer)

    weights = list(perturbed.parameters())
    plain = torch.autograd.grad(sum_of_means(perturbed, data, accumulation), weights)
    norm = torch.cat([g.flatten() for g in plain]).norm()
    with torch.no_grad():
        for p, g in zip(weights, plain, strict=True):
            p += 0.2 * g / norm
    step = torch.cat(
        [-0.05 * g.flatten() for g in torch.autograd.grad(sum_of_means(perturbed, data, accumulation), weights)]
    )
    # T5's norms and Trainer's loss compute in float32
    assert relative_difference(flat(model) - start, step) < 1e-5
    assert relative_difference(torch.cat([-0.05 * g.flatten() for g in plain]), step) > 1e-2


def test_generating_in_mid_training_changes_nothing(tmp_path):
    generated = []

    def keep(prediction):
        generated.append(prediction.predictions)
        return {}

    plain, evaluated = t5(), t5()
    seq2seq(plain, reversals(16), tmp_path)
    trainer = seq2seq(evaluated, reversals(16), tmp_path, compute_metrics=keep, eval_strategy="steps", eval_steps=1)
    assert [tokens.shape for tokens in generated] == [(4, 5)] * 3
    # Generation is greedy and at w: the last evaluation saw the model that training left
    inputs = torch.stack([example["input_ids"] for example in reversals(4)])
    assert torch.equal(torch.as_tensor(generated[-1]), evaluated.eval().generate(inputs, max_length=5))
    assert_same(snapshot(evaluated), snapshot(plain))
    assert trainer.model is evaluated


@pytest.mark.parametrize("rho", [0.0, 1e-12])
def test_plain_trainer_with_dropout_and_evaluation(tmp_path, rho):
    expected, model = t5(dropout=0.3), t5(dropout=0.3)
    run = {"eval_strategy": "steps", "eval_steps": 1, "gradient_accumulation_steps": 2}
    plain = seq2seq(expected, reversals(32), tmp_path, trainer_class=Seq2SeqTrainer, **run)
    sam = seq2seq(model, reversals(32), tmp_path, sam_rho=rho, **run)
    tolerance = {"rtol": 1e-6, "atol": 1e-7} if rho else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(flat(model), flat(expected), **tolerance)
    for key in ("loss", "eval_loss"):
        values = [[entry[key] for entry in t.state.log_history if key in entry] for t in (sam, plain)]
        assert len(values[0]) == 3
        assert all(math.isclose(a, b, rel_tol=1e-5) for a, b in zip(*values, strict=True))

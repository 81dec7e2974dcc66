"""Models other than a plain PreTrainedModel with float32 weights in every layer."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from by_hand import real_optimizer, train_by_hand, training_logs
from tiny import (
    Perceptron,
    assert_same,
    flat,
    perceptron,
    points,
    relative_difference,
    sentences,
    snapshot,
    trained,
    trainer_of,
    windows_of,
)
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer
from transformers.utils import ModelOutput

from sam_hf import SAMTrainer

RHO, UPDATES, BATCH = 0.2, 6, 4
RUN = {"optim": "adamw_torch", "learning_rate": 0.02, "weight_decay": 0.1, "max_steps": UPDATES}


def sam_run(model, data, output_dir, **options):
    return trained(model, data, output_dir, **({"sam_rho": RHO} | RUN | options))


def by_hand(model, data, output_dir, accumulation, **options):
    optimizer, scheduler = real_optimizer(model, data, output_dir, UPDATES, **RUN)
    return train_by_hand(
        model, windows_of(data, BATCH, accumulation, UPDATES), optimizer, scheduler, rho=RHO, **options
    )


@dataclass
class Output(ModelOutput):
    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None


class Returning(Perceptron):
    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, x, labels=None):
        output = super().forward(x, labels)
        return tuple(output.values()) if self.kind is tuple else self.kind(**output)


@pytest.mark.parametrize("options", [{}, {"sam_m": 2, "sam_ascent_steps": 2}], ids=str)
@pytest.mark.parametrize("kind", [tuple, dict, Output])
def test_outputs_that_are_tuples_dicts_and_model_outputs(tmp_path, kind, options):
    torch.manual_seed(0)
    model, expected = Returning(kind).double(), perceptron()
    options = {"gradient_accumulation_steps": 2} | options
    trainer = sam_run(model, points(40), tmp_path, eval_dataset=points(8), **options)
    other = sam_run(expected, points(40), tmp_path, eval_dataset=points(8), **options)
    assert_same(snapshot(model), snapshot(expected))
    assert [e["sam_sharpness"] for e in training_logs(trainer)] == [e["sam_sharpness"] for e in training_logs(other)]
    assert trainer.evaluate()["eval_loss"] == other.evaluate()["eval_loss"]


class Routed(Perceptron):
    """Two experts, one of which each micro-batch uses, and a layer that nothing uses."""

    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])
        self.unused = nn.Linear(3, 3)

    def forward(self, x, labels=None):
        expert = self.experts[int(x[0, 0] > 0)]
        logits = self.second(torch.tanh(expert(self.first(x))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def routed():
    torch.manual_seed(0)
    return Routed().double()


@pytest.mark.parametrize("accumulation", [1, 2])
def test_unused_and_sometimes_used_parameters(tmp_path, accumulation):
    """A parameter without a gradient is not stepped: AdamW does not change it, as in plain training."""
    data, model, expected = points(40), routed(), routed()
    used = [[int(micro[0]["x"][0] > 0) for micro in window] for window in windows_of(data, 4, accumulation, UPDATES)]
    assert {0, 1} == {expert for window in used for expert in window}
    trainer = sam_run(model, data, tmp_path, gradient_accumulation_steps=accumulation)
    history = by_hand(expected, data, tmp_path, accumulation)
    assert relative_difference(flat(model), flat(expected)) < 1e-9
    assert_same(snapshot(model.unused), snapshot(routed().unused))
    assert [e["grad_norm"] for e in training_logs(trainer)] == pytest.approx([u.grad_norm for u in history], rel=1e-9)


class MixedPrecision(nn.Module):
    """Layers in float64, float32 and bf16."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(5, 8).double()
        self.single = nn.Linear(8, 8).float()
        self.low = nn.Linear(8, 3).bfloat16()

    def forward(self, x, labels=None):
        hidden = torch.tanh(self.wide(x)).float()
        logits = self.low(torch.tanh(self.single(hidden)).bfloat16())
        return {"loss": nn.functional.cross_entropy(logits.float(), labels), "logits": logits}


def test_mixed_dtypes_share_one_norm(tmp_path):
    data, passes = points(4), []

    class Recording(SAMTrainer):
        def compute_loss(self, model, *args, **kwargs):
            passes.append(snapshot(model))
            return super().compute_loss(model, *args, **kwargs)

    model, reference = MixedPrecision(), MixedPrecision()
    trainer = trainer_of(model, data, tmp_path, trainer_class=Recording, max_steps=1, sam_rho=2.0, max_grad_norm=1.0)
    trainer.train()
    w, perturbed = passes
    assert_same(w, snapshot(reference))

    reference(**{key: torch.stack([example[key] for example in data]) for key in data[0]})["loss"].backward()
    gradients = {name: p.grad.double() for name, p in reference.named_parameters()}
    norm = torch.cat([g.flatten() for g in gradients.values()]).norm()
    assert training_logs(trainer)[0]["sam_ascent_grad_norm"] == pytest.approx(float(norm), rel=1e-5)
    for name, p in reference.named_parameters():
        expected = w[name].double() + 2.0 * gradients[name] / norm
        # One unit in the last place for a bf16 weight; otherwise float32, in which the norm is computed
        tolerance = 2**-8 if p.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(perturbed[name].double(), expected, rtol=tolerance, atol=tolerance * 1e-1)
        assert perturbed[name].dtype == p.dtype
        assert (perturbed[name] != w[name]).any()
    # The step starts from w: SGD with clipping at 1 moves by the learning rate
    moved = sum(float((p.detach().double() - w[name].double()).pow(2).sum()) for name, p in model.named_parameters())
    assert moved**0.5 <= 0.05 * 1.05


def language_model():
    torch.manual_seed(0)
    sizes = {"vocab_size": 24, "n_positions": 6, "n_embd": 8, "n_layer": 1, "n_head": 2, "initializer_range": 0.3}
    config = GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
    return GPT2LMHeadModel(config).double()


def ignoring_some(size):
    """Return examples that ignore different numbers of labels, and always the first, which nothing predicts."""
    data = sentences(size)
    for index, example in enumerate(data):
        example["labels"] = example["input_ids"].clone()
        example["labels"][: 1 + index % 5] = -100
    return data


def per_token(model, batch, window):
    tokens = sum((other["labels"][:, 1:] != -100).sum() for other in window)
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"])["logits"][:, :-1]
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), ignore_index=-100, reduction="sum"
    )
    return total / tokens


@pytest.mark.parametrize("accumulation", [1, 2])
def test_causal_language_model_with_tied_weights(tmp_path, accumulation):
    """The loss is a mean over the tokens of the whole window; the tied embedding is saved and loaded as one tensor."""
    data, model, expected = ignoring_some(40), language_model(), language_model()
    assert model.lm_head.weight is model.transformer.wte.weight
    trainer = sam_run(model, data, tmp_path, gradient_accumulation_steps=accumulation, optim="sgd")
    optimizer, scheduler = real_optimizer(expected, data, tmp_path, UPDATES, **RUN | {"optim": "sgd"})
    windows = windows_of(data, BATCH, accumulation, UPDATES)
    history = train_by_hand(expected, windows, optimizer, scheduler, rho=RHO, loss=per_token)
    # GPT-2's loss is computed in float32
    assert relative_difference(flat(model), flat(expected)) < 1e-6
    for entry, update in zip(training_logs(trainer), history, strict=True):
        assert entry["sam_perturbed_loss"] == pytest.approx(update.perturbed_loss, rel=1e-5)
        assert entry["sam_sharpness"] == pytest.approx(update.perturbed_loss - update.loss, rel=1e-3)
    assert model.lm_head.weight is model.transformer.wte.weight
    trainer.save_model(tmp_path / "saved")
    again = GPT2LMHeadModel.from_pretrained(tmp_path / "saved", dtype=torch.float64)
    assert_same(snapshot(again), snapshot(model))


class OfTuples:
    """A `compute_loss` for batches that are not mappings."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        x, labels = inputs
        outputs = model(x, labels)
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_batches_that_are_tuples(tmp_path, accumulation):
    def run(trainer_class):
        class OfTuplesTrainer(OfTuples, trainer_class):
            pass

        model = perceptron()
        trainer = trainer_of(
            model,
            points(40),
            tmp_path,
            trainer_class=OfTuplesTrainer,
            gradient_accumulation_steps=accumulation,
            **RUN | {"sam_rho": RHO},
        )
        trainer.data_collator = lambda examples: tuple(
            torch.stack([example[key] for example in examples]) for key in ("x", "labels")
        )
        trainer.train()
        return model

    expected = perceptron()
    by_hand(expected, points(40), tmp_path, accumulation)
    assert relative_difference(flat(run(SAMTrainer)), flat(expected)) < 1e-9
    # Plain Trainer accepts them too
    assert relative_difference(flat(run(Trainer)), flat(expected)) > 1e-3

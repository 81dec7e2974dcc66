"""SAM over other Trainers, models and parameters than the plain ones."""

from __future__ import annotations

import pytest
import torch
from tiny import (
    Perceptron,
    assert_same,
    bert,
    flat,
    perceptron,
    points,
    sentences,
    snapshot,
    trained,
    trainer_of,
)
from torch import nn
from transformers import Trainer

from sam_hf import SAMMixin, SAMTrainer


class Popping(Trainer):
    """What other trainers do: a `compute_loss` that empties its inputs and a `training_step` of its own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.passes = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")
        logits = model(inputs.pop("x"))["logits"]
        assert not inputs
        return nn.functional.cross_entropy(logits, labels)

    def training_step(self, model, inputs, num_items_in_batch=None):
        if torch.is_grad_enabled():  # slices are compared with the whole micro-batch without gradients
            self.passes.append(sorted(inputs))
        return super().training_step(model, inputs, num_items_in_batch)


class SAMPopping(SAMMixin, Popping):
    pass


@pytest.mark.parametrize("options", [{}, {"sam_ascent_steps": 2}, {"sam_m": 4}, {"sam_m": 2}], ids=str)
def test_overrides_below_the_mixin_run_once_a_pass(tmp_path, options):
    model, expected = perceptron(), perceptron()
    run = {"gradient_accumulation_steps": 2, "sam_rho": 0.2} | options
    trainer = trained(model, points(32), tmp_path, trainer_class=SAMPopping, **run)
    trained(expected, points(32), tmp_path, **run)
    torch.testing.assert_close(flat(model), flat(expected), rtol=1e-12, atol=1e-12)
    slices = 2 if options.get("sam_m") == 2 else 1
    assert trainer.passes == [["labels", "x"]] * (6 * 2 * slices * (1 + options.get("sam_ascent_steps", 1)))


class Recording(SAMTrainer):
    """Keeps the weights that every pass sees."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def compute_loss(self, model, *args, **kwargs):
        self.seen.append({name: p.detach().clone() for name, p in model.named_parameters()})
        return super().compute_loss(model, *args, **kwargs)


def first_epsilon(model, data, output_dir, **options):
    """ε of the first update by parameter name, and the gradient at w that it should come from."""
    trainer = trainer_of(model, data, output_dir, Recording, max_steps=1, **options)
    trainer.train()
    w, perturbed = trainer.seen
    return {name: perturbed[name] - w[name] for name in w}


def gradient_at_w(model, data):
    model(**{key: torch.stack([example[key] for example in data]) for key in data[0]})["loss"].backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_epsilon(epsilon, gradient, rho):
    norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
    for name, part in epsilon.items():
        # A difference of weights: rounded to theirs
        torch.testing.assert_close(part, rho * gradient[name] / norm, rtol=1e-9, atol=1e-14)


class Tied(nn.Module):
    """An embedding that is also the output layer."""

    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(24, 6)
        self.output = nn.Linear(6, 24, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.output(self.embedding(input_ids).mean(1))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def seeded(make):
    torch.manual_seed(0)
    return make().double()


def test_tied_weights_are_perturbed_once(tmp_path):
    data = sentences(4)
    epsilon = first_epsilon(seeded(Tied), data, tmp_path, sam_rho=0.2)
    assert set(epsilon) == {"embedding.weight"}
    assert_epsilon(epsilon, gradient_at_w(seeded(Tied), data), 0.2)


def test_frozen_parameters_are_not_perturbed(tmp_path):
    def frozen():
        model = perceptron()
        model.first.requires_grad_(False)
        return model

    data, model = points(4), frozen()
    before = snapshot(model)
    epsilon = first_epsilon(model, data, tmp_path, sam_rho=0.2)
    assert not epsilon["first.weight"].any() and not epsilon["first.bias"].any()
    assert_epsilon(epsilon, gradient_at_w(frozen(), data), 0.2)
    assert torch.equal(model.first.weight, before["first.weight"])


class Alternating(Perceptron):
    """A parameter with a gradient in every second pass only."""

    def __init__(self, first):
        super().__init__()
        self.extra = nn.Parameter(torch.ones(3))
        self.turn = first

    def forward(self, x, labels=None):
        logits = super().forward(x)["logits"]
        if self.turn:
            logits = logits + self.extra
        self.turn = not self.turn
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("in_ascent", [True, False])
def test_gradient_in_one_pass_only(tmp_path, in_ascent):
    model = seeded(lambda: Alternating(in_ascent))
    epsilon = first_epsilon(model, points(4), tmp_path, sam_rho=0.2)
    assert bool(epsilon["extra"].any()) == in_ascent
    # The base optimizer has the descent gradient alone
    assert torch.equal(model.extra, torch.ones(3).double()) == in_ascent


class Sparse(nn.Module):
    accepts_loss_kwargs = False

    def __init__(self, sparse=True):
        super().__init__()
        self.embedding = nn.Embedding(24, 6, sparse=sparse)
        self.output = nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        logits = self.output(torch.tanh(self.embedding(input_ids).mean(1)))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def torch_clips_sparse_gradients() -> bool:
    """Not in 2.7: plain Trainer, which logs the gradient's norm, fails there too."""
    embedding = nn.Embedding(2, 2, sparse=True)
    embedding(torch.tensor([0])).sum().backward()
    try:
        nn.utils.clip_grad_norm_(embedding.parameters(), 1.0)
    except NotImplementedError:
        return False
    return True


@pytest.mark.skipif(not torch_clips_sparse_gradients(), reason="this torch takes no norm of sparse gradients")
@pytest.mark.parametrize("options", [{}, {"sam_p": 3.0, "sam_ascent_steps": 2}, {"sam_m": 2}], ids=str)
def test_sparse_gradients(tmp_path, options):
    sparse, dense = seeded(Sparse), seeded(lambda: Sparse(sparse=False))
    run = {"sam_rho": 0.2, "gradient_accumulation_steps": 2} | options
    trained(sparse, sentences(32), tmp_path, **run)
    trained(dense, sentences(32), tmp_path, **run)
    torch.testing.assert_close(flat(sparse), flat(dense), rtol=1e-12, atol=1e-12)


def test_gradient_checkpointing_with_dropout_changes_nothing(tmp_path):
    plain, checkpointed = bert(dropout=0.3), bert(dropout=0.3)
    forwards = []
    checkpointed.bert.encoder.layer[0].attention.register_forward_pre_hook(lambda *_: forwards.append(1))
    run = {"sam_rho": 0.2, "gradient_accumulation_steps": 2}
    trained(plain, sentences(32), tmp_path, **run)
    trained(checkpointed, sentences(32), tmp_path, gradient_checkpointing=True, **run)
    # Forward, and once more in backward, for two passes over two micro-batches of six updates
    assert len(forwards) == 2 * 2 * 2 * 6
    torch.testing.assert_close(flat(checkpointed), flat(plain), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("failing_pass", [1, 2, 4], ids=["ascent", "descent", "later descent"])
def test_auto_find_batch_size_goes_on_from_w(tmp_path, failing_pass):
    class OutOfMemoryOnce(SAMTrainer):
        calls = 0

        def compute_loss(self, model, inputs, *args, **kwargs):
            type(self).calls += 1
            if type(self).calls == failing_pass:
                # The retry is with a smaller batch, on the same model
                at["weights"] = begin["weights"]
                raise RuntimeError("CUDA out of memory.")
            if type(self).calls == failing_pass + 1:
                assert_same(snapshot(model), at["weights"])
                at["batch"] = len(inputs["x"])
            return super().compute_loss(model, inputs, *args, **kwargs)

        def get_batch_samples(self, *args, **kwargs):
            if "weights" not in at:
                begin["weights"] = snapshot(self.model)
            return super().get_batch_samples(*args, **kwargs)

    at, begin = {}, {}
    trainer = trained(
        perceptron(), points(32), tmp_path, trainer_class=OutOfMemoryOnce, auto_find_batch_size=True, sam_rho=0.2
    )
    assert trainer.state.global_step == 6
    assert 1 <= at["batch"] < 4

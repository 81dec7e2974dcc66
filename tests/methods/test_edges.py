"""Training beyond the formulas: leftover gradients, dropout, statistics, unused parameters, overflow."""

from __future__ import annotations

import itertools
import json
import logging
import shutil

import pytest
import reference
import torch
from common import run_of
from reference_methods import DEFAULTS
from runs import OPTIMIZERS, assert_agree
from tiny import (
    Perceptron,
    Watch,
    assert_same,
    bert,
    flat,
    perceptron,
    points,
    relative_difference,
    sentences,
    snapshot,
    trained,
    trainer_of,
)
from torch import nn
from torch.utils.data import IterableDataset
from transformers import Trainer

from sam_hf.methods import METHODS
from sam_hf.update.random_state import RandomState

KNOWN = [method for method in METHODS if method in DEFAULTS]
VANISHING = 1e-12
# u is s, or becomes s as the radius vanishes, even if g is computed on few examples
LIKE_SAM = ["sam", "asam", "fsam", "vasso"]
DROPOUT_RUN = OPTIMIZERS["adamw"] | {"max_grad_norm": 1.0}
FRACTIONS = [
    {"sam_ascent_fraction": 0.25, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 2},
    {"sam_ascent_fraction": 0.4, "gradient_accumulation_steps": 2},
    {"sam_ascent_fraction": 0.5, "gradient_accumulation_steps": 2, "sam_m": 4},
]


def with_dropout(output_dir, **options):
    model = bert(dropout=0.2)
    trained(model, sentences(22), output_dir, **(DROPOUT_RUN | options))
    return model, RandomState()


@pytest.mark.parametrize("method", KNOWN)
def test_vanishing_radius_follows_trainer_with_dropout(tmp_path, method):
    options = {"gradient_accumulation_steps": 2}
    plain, plain_random = with_dropout(tmp_path, trainer_class=Trainer, **options)
    model, random = with_dropout(tmp_path, sam_method=method, sam_rho=VANISHING, sam_interval=1, **options)
    assert relative_difference(flat(model), flat(plain)) < 1e-7
    assert random == plain_random


@pytest.mark.parametrize("options", FRACTIONS, ids=str)
@pytest.mark.parametrize("method", LIKE_SAM)
def test_fraction_leaves_dropout_alone(tmp_path, method, options):
    """The descent passes see the random numbers of plain training, and so does everything after them."""
    batches = {name: value for name, value in options.items() if not name.startswith("sam_")}
    plain, plain_random = with_dropout(tmp_path, trainer_class=Trainer, **batches)
    model, random = with_dropout(tmp_path, sam_method=method, sam_rho=VANISHING, **options)
    assert relative_difference(flat(model), flat(plain)) < 1e-7
    assert random == plain_random


def normed(output_dir, **options):
    model = perceptron(lambda: nn.BatchNorm1d(6))
    trained(model, points(32), output_dir, max_steps=3, sam_rho=VANISHING, **options)
    return snapshot(model.middle)


@pytest.mark.parametrize("method", KNOWN)
def test_running_statistics_follow_one_pass_an_example(tmp_path, method):
    batches = {"gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "optim_args": "momentum=0.9"}
    plain = normed(tmp_path, trainer_class=Trainer, **batches)
    for fraction in (1.0,) if method == "msam" else (1.0, 0.25, 0.5):
        # Micro-batches without an ascent pass update the statistics in the descent pass
        found = normed(tmp_path, sam_method=method, sam_interval=1, sam_ascent_fraction=fraction, **batches)
        assert found["num_batches_tracked"] == plain["num_batches_tracked"]
        if fraction == 1.0 or method in LIKE_SAM:
            torch.testing.assert_close(found, plain, rtol=1e-7, atol=1e-9)


class Stream(IterableDataset):
    """A data set without a length, so that Trainer does not know which micro-batch is the last of an epoch."""

    def __iter__(self):
        yield from points(10)


@pytest.mark.parametrize("method", KNOWN)
def test_a_window_that_breaks_off_leaves_its_gradient_to_the_next(tmp_path, method):
    options = {"gradient_accumulation_steps": 2, "max_steps": 5, "optim_args": "momentum=0.9"}
    model, plain = perceptron(), perceptron()
    trained(model, Stream(), tmp_path, sam_method=method, sam_rho=1e-13, sam_interval=1, **options)
    trained(plain, Stream(), tmp_path, trainer_class=Trainer, **options)
    assert relative_difference(flat(model), flat(plain)) < 1e-10


class Routed(Perceptron):
    """A model with two branches. A batch uses one of them; the parameters of the other have no gradient."""

    def __init__(self):
        super().__init__()
        self.branches = nn.ModuleList([nn.Linear(6, 6), nn.Linear(6, 6)])

    def forward(self, x, labels=None, route=None):
        logits = self.second(torch.tanh(self.branches[int(route[0])](torch.tanh(self.first(x)))))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def routed():
    torch.manual_seed(0)
    return Routed().double()


def routes(size):
    """Return points whose windows of 8 use the two branches in turn."""
    return [point | {"route": torch.tensor(index // 8 % 2)} for index, point in enumerate(points(size))]


# Between its SAM updates, looksam does not step parameters without a gradient
@pytest.mark.parametrize("method", [method for method in KNOWN if method not in ("msam", "looksam")])
def test_no_gradient_is_a_gradient_of_zero(tmp_path, method):
    # With momentum, a missing gradient would differ from a gradient of zeros
    plain_sgd = {"optim_args": "momentum=0.0"}
    how = {"make_model": routed, "make_data": routes, "size": 32, "momentum": 0.0}
    assert_agree(tmp_path, method, trainer_options=plain_sgd, **how)


@pytest.mark.parametrize("method", [method for method in KNOWN if method != "msam"])
def test_sparse_gradients(tmp_path, method):
    weights = []
    for sparse in (False, True):
        model = bert()
        embeddings = model.bert.embeddings.word_embeddings
        embeddings.sparse, embeddings.padding_idx = sparse, None
        interval = 2 if method == "looksam" else 1
        trained(model, sentences(16), tmp_path, sam_method=method, sam_rho=0.1, sam_interval=interval)
        weights.append(flat(model))
    assert relative_difference(*weights) < 1e-12


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("targets", ["norm", ["query"]], ids=str)
def test_checkpointed_activations_of_what_is_not_perturbed(tmp_path, targets, reentrant):
    perturbs = (lambda name: "LayerNorm" in name) if targets == "norm" else (lambda name: ".query." in name)
    model = {"make_model": bert, "make_data": sentences, "weigh": reference.sum_of_means, "batch_size": 2}
    checkpointing = {
        "gradient_checkpointing": True,
        "gradient_checkpointing_kwargs": {"use_reentrant": reentrant},
    }
    assert_agree(tmp_path, "wsam", targets=targets, perturbs=perturbs, trainer_options=checkpointing, **model)


class Failure(Exception):
    pass


@pytest.mark.parametrize("where", ["forward", "backward"])
def test_after_an_exception_the_same_parameters_are_trained(tmp_path, where):
    """The exception is in the ascent pass, which computes no gradient of parameters that are not perturbed."""
    model = bert()

    def fail(module, args, output):
        if where == "forward":
            raise Failure
        output.register_hook(lambda gradient: (_ for _ in ()).throw(Failure()))

    handle = model.classifier.register_forward_hook(fail)
    trainer = trainer_of(model, sentences(16), tmp_path, sam_target_modules="norm", sam_rho=0.1)
    with pytest.raises(Failure):
        trainer.train()
    assert all(p.requires_grad for p in model.parameters())
    handle.remove()
    trainer.train()
    again = bert()
    trained(again, sentences(16), tmp_path, sam_target_modules="norm", sam_rho=0.1)
    assert_same(snapshot(model), snapshot(again))


def grouped_trainer(output_dir, rates, **options):
    """Return a model and a trainer whose layers are parameter groups with different learning rates."""
    model = perceptron()
    layers = [model.first, model.second]
    optimizer = torch.optim.SGD(
        [{"params": layer.parameters(), "lr": lr} for layer, lr in zip(layers, rates, strict=True)]
    )
    trainer = trainer_of(model, points(16), output_dir, max_steps=1, **options)
    trainer.optimizer = optimizer
    return model, trainer


def test_decoupled_wsam_steps_by_each_groups_learning_rate(tmp_path):
    """Without momentum and weight decay, the two forms of wsam are the same."""
    weights = []
    for decouple in (False, True):
        options = {"sam_method": "wsam", "sam_rho": 0.2, "sam_method_kwargs": {"decouple": decouple}}
        model, trainer = grouped_trainer(tmp_path, (0.1, 0.01), **options)
        trainer.train()
        weights.append(flat(model))
    assert relative_difference(*weights) < 1e-12


def test_learning_rate_schedule_of_the_radius_follows_the_first_group(tmp_path):
    options = {"sam_rho": 0.2, "sam_rho_schedule": "lr", "lr_scheduler_type": "linear"}
    _, trainer = grouped_trainer(tmp_path, (0.1, 0.01), **options)
    trainer.args.max_steps = 4
    trainer.train()
    radii = [entry["sam_rho"] for entry in trainer.state.log_history if "loss" in entry]
    assert radii == pytest.approx([0.2, 0.15, 0.1, 0.05], rel=1e-6)


def decoupled(output_dir, scale, overflow_in=0, callbacks=()):
    model = perceptron().float()
    passes = []

    def spoil(module, args, output):
        passes.append(1)
        if len(passes) == overflow_in:
            output["loss"].register_hook(lambda gradient: gradient * torch.inf)

    model.register_forward_hook(spoil)
    options = {"sam_method": "wsam", "sam_rho": 0.1, "sam_method_kwargs": {"decouple": True}}
    data = points(32, torch.float32)
    trainer = trainer_of(model, data, output_dir, callbacks=callbacks, optim_args="momentum=0.9", **options)
    if scale:
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    trainer.train()
    return model


def test_decoupled_wsam_does_not_depend_on_the_loss_scale(tmp_path):
    unscaled, small, large = (snapshot(decoupled(tmp_path, scale)) for scale in (None, 2.0**4, 2.0**14))
    assert_same(small, unscaled)
    assert_same(large, unscaled)


@pytest.mark.parametrize("overflow_in", [3, 4])
def test_decoupled_wsam_makes_no_step_if_the_scaler_skips_it(tmp_path, overflow_in):
    """The overflow is in the first or the second pass of the second update."""
    weights = []
    watch = Watch(lambda event, model: weights.append(flat(model)) if event == "on_step_end" else None)
    decoupled(tmp_path, 2.0**10, overflow_in, [watch])
    moved = [not torch.equal(a, b) for a, b in itertools.pairwise(weights)]
    assert all(w.isfinite().all() for w in weights)
    # If only the gradient at w overflows, the optimizer steps, but there is no ascent
    assert moved[1:] == [True] * 4
    assert moved[0] == (overflow_in == 3) or not moved[0]


def test_decoupled_wsam_resumes_bit_for_bit(tmp_path):
    each = {"sam_method_kwargs": {"decouple": True}, "save_strategy": "steps", "save_steps": 3, "dropout": 0.2}
    model, trainer = run_of("wsam", tmp_path, **each)
    trainer.train()
    shutil.rmtree(tmp_path / "checkpoint-6")
    resumed, again = run_of("wsam", tmp_path, **each)
    again.train(resume_from_checkpoint=True)
    assert_same(snapshot(resumed), snapshot(model))


def test_averages_start_again_with_another_number_of_processes(tmp_path, caplog):
    each = {"save_strategy": "steps", "save_steps": 3}
    _, trainer = run_of("fsam", tmp_path / "one", **each)
    trainer.train()
    shutil.rmtree(tmp_path / "one" / "checkpoint-6")
    shutil.copytree(tmp_path / "one", tmp_path / "bare")
    for path in (tmp_path / "bare" / "checkpoint-3").glob("sam_state*"):
        path.unlink()
    numbers = tmp_path / "one" / "checkpoint-3" / "sam_state.json"
    numbers.write_text(json.dumps(json.loads(numbers.read_text()) | {"world_size": 2}))
    ends = []
    for folder in ("one", "bare"):
        model, again = run_of("fsam", tmp_path / folder)
        with caplog.at_level(logging.WARNING, "sam_hf"):
            again.train(resume_from_checkpoint=str(tmp_path / folder / "checkpoint-3"))
        ends.append(snapshot(model))
        if folder == "one":
            assert any("fsam" in r.getMessage() for r in caplog.records if r.name.startswith("sam_hf"))
    assert_same(*ends)


@pytest.mark.parametrize("method", KNOWN)
def test_sam_that_never_starts(tmp_path, method):
    model, trainer = run_of(method, tmp_path, sam_start_ratio=1.0)
    trainer.train()
    plain, other = run_of(method, tmp_path, trainer_class=Trainer)
    other.train()
    assert_same(snapshot(model), snapshot(plain))

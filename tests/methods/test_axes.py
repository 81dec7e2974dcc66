"""Schedules, timing, ascent fraction and target modules, with every method that they apply to."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from reference_methods import DEFAULTS
from runs import OPTIMIZERS, assert_agree, both
from tiny import bert, flat, perceptron, points, sentences, summed_cross_entropy, trained
from torch import nn
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    RobertaPreLayerNormConfig,
    RobertaPreLayerNormForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from sam_hf import SAMArguments
from sam_hf.arguments.schedules import radius_at
from sam_hf.methods import METHODS
from sam_hf.update.model_structure import left_out

KNOWN = [method for method in METHODS if method in DEFAULTS]
TWO_PASSES = [method for method in KNOWN if method != "msam"]
INTERVALS = {"looksam": 3}
SCHEDULES = {
    "linear": {"schedule": "linear"},
    "linear to a minimum": {"schedule": "linear", "rho_min": 0.05},
    "cosine": {"schedule": "cosine"},
    "cosine to a minimum": {"schedule": "cosine", "rho_min": 0.05},
    "learning rate": {"schedule": "lr", "rho_min": 0.05, "lr_scheduler_type": "linear"},
    "constant learning rate": {"schedule": "lr", "rho_min": 0.05},
    "warmup": {"schedule": "warmup", "warmup": 0.5},
    "warmup over no whole update": {"schedule": "warmup", "warmup": 0.1},
}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("method", [method for method in KNOWN if method != "looksam"])
def test_schedules(tmp_path, method, name):
    assert_agree(tmp_path, method, **SCHEDULES[name])


@pytest.mark.parametrize("name", ["linear to a minimum", "learning rate"])
def test_schedules_of_looksam(tmp_path, name):
    assert_agree(tmp_path, "looksam", interval=2, **SCHEDULES[name])


def test_radii_of_a_run(tmp_path):
    """The radii follow the formula directly, without the reference."""
    _, _, trainer = both(tmp_path, "sam", schedule="cosine", rho=0.3, rho_min=0.1)
    # ρ at the start, the minimum at the last of six updates
    expected = [0.1 + 0.2 * (1 + math.cos(math.pi * t / 5)) / 2 for t in range(6)]
    radii = [entry["sam_rho"] for entry in trainer.state.log_history if "loss" in entry]
    assert radii == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("interval", "start"), [(2, 0.0), (3, 0.0), (1, 0.5), (1, 0.2), (2, 0.2), (3, 0.34)])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("method", KNOWN)
def test_timing(tmp_path, method, optimizer, interval, start):
    """
    SAM runs on updates 0, k, 2k, … of the run, from ⌈start·6⌉ on. looksam is plain until it has a direction, and msam
    has ε = 0 until there is a moment.
    """
    _, expected, _ = assert_agree(tmp_path, method, optimizer, interval=interval, start=start)
    first = {0.0: 0, 0.5: 3, 0.2: 2, 0.34: 3}[start]
    first = max(first, int(method == "msam"))
    sam_updates = [t for t, update in enumerate(expected) if update.rho]
    assert sam_updates == [t for t in range(6) if t % interval == 0 and t >= first]


@pytest.mark.parametrize(
    "axis", [{"sam_start_ratio": 0.28}, {"sam_rho_schedule": "warmup", "sam_rho_warmup_ratio": 0.28}]
)
def test_shares_of_training_are_decimal_numbers(tmp_path, axis):
    """.28 of 25 updates are 7. In floating point they would be 8."""
    trainer = trained(perceptron(), points(8), tmp_path, max_steps=25, sam_rho=0.7, **axis)
    radii = [entry.get("sam_rho", 0.0) for entry in trainer.state.log_history if "loss" in entry]
    before = [0.0] * 7 if "sam_start_ratio" in axis else [0.1 * t for t in range(7)]
    assert radii == pytest.approx(before + [0.7] * 18, rel=1e-6)


@pytest.mark.parametrize(("group", "share"), [({"lr": 0.05}, 0.5), ({"lr": 0.3, "initial_lr": 0.1}, 1.0)], ids=str)
def test_radius_follows_learning_rates_without_or_above_their_first_one(group, share):
    """ReduceLROnPlateau stores no first learning rate; another schedule rises above it, but ρ does not rise."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    optimizer.param_groups[0].update(group)
    args = SAMArguments(sam_rho=0.4, sam_rho_min=0.2, sam_rho_schedule="lr")
    assert radius_at(args, 3, 10, optimizer) == pytest.approx(0.2 + 0.2 * share)


def test_means_are_over_all_updates(tmp_path):
    """Those of `loss` as well. On a plain update, ε is 0."""
    how = {"interval": 2, "schedule": "linear", "rho_min": 0.05}
    _, expected, trainer = both(tmp_path, "sam", trainer_options={"logging_steps": 3}, **how)
    first, second = [entry for entry in trainer.state.log_history if "loss" in entry]
    rho = [update.rho for update in expected]
    assert first["sam_rho"] == pytest.approx((rho[0] + rho[2]) / 3, rel=1e-6)
    assert second["sam_rho"] == pytest.approx(rho[4] / 3, rel=1e-6)
    perturbed = (expected[0].perturbed_loss + expected[1].loss + expected[2].perturbed_loss) / 3
    assert first["sam_perturbed_loss"] == pytest.approx(perturbed, rel=1e-6)
    assert first["loss"] == pytest.approx(sum(update.loss for update in expected[:3]) / 3, rel=1e-6)


def test_looksam_takes_its_second_pass_every_fifth_update_unless_told_otherwise(tmp_path):
    assert_agree(tmp_path, "looksam", interval=5, trainer_options={"sam_interval": None})


@pytest.mark.parametrize(("method", "schedule", "rho"), [("sam", "constant", 0.05), ("asam", None, 0.5)])
def test_published_radius_is_the_default_without_auto(tmp_path, method, schedule, rho):
    assert_agree(tmp_path, method, rho=rho, trainer_options={"sam_rho": None, "sam_rho_schedule": schedule})


# The examples of the ascent gradient are a part of the only micro-batch, whole micro-batches (the others have no
# ascent pass), one and a half micro-batches, or a part of each group
FRACTIONS = [
    {"fraction": 0.25, "batch_size": 8, "accumulation": 1},
    {"fraction": 0.5, "batch_size": 8, "accumulation": 1},
    {"fraction": 0.25, "batch_size": 2, "accumulation": 4},
    {"fraction": 0.5, "batch_size": 2, "accumulation": 4},
    {"fraction": 0.3, "batch_size": 2, "accumulation": 4},
    {"fraction": 0.5, "m": 4},
    {"fraction": 0.5, "m": 2},
    {"fraction": 0.6, "m": 4, "batch_size": 2, "accumulation": 4},
]


@pytest.mark.parametrize("how", FRACTIONS, ids=str)
@pytest.mark.parametrize("method", TWO_PASSES)
def test_fraction(tmp_path, method, how):
    assert_agree(tmp_path, method, interval=INTERVALS.get(method, 1), **how)


@pytest.mark.parametrize("fraction", [0.5, 0.75])
@pytest.mark.parametrize("method", ["sam", "wsam", "fsam"])
def test_fraction_of_a_loss_that_is_a_sum(tmp_path, method, fraction):
    """Windows have 4+4 and 4+3 examples. The ascent takes 6 and 6 of them, or 4 and 4."""
    how = {"weigh": reference.equal_weights, "compute_loss_func": summed_cross_entropy, "size": 15}
    assert_agree(tmp_path, method, "adamw", fraction=fraction, **how)


def partly_labelled(size):
    """Return points of which every third one has no label that counts."""
    labels = [-100 if index % 3 == 0 else int(point["labels"]) for index, point in enumerate(points(size))]
    return [point | {"labels": torch.tensor(label)} for point, label in zip(points(size), labels, strict=True)]


def over_labels(window):
    total = sum(int(example["labels"]) != -100 for micro_batch in window for example in micro_batch)
    return [
        [
            (example, 1 / total) if int(example["labels"]) != -100 else (example | {"labels": torch.tensor(0)}, 0.0)
            for example in micro_batch
        ]
        for micro_batch in window
    ]


@pytest.mark.parametrize("how", [{"fraction": 0.5}, {"fraction": 0.25, "batch_size": 8}, {"m": 2}], ids=str)
@pytest.mark.parametrize("method", ["sam", "wsam", "fsam"])
def test_examples_weigh_by_their_labels(tmp_path, method, how):
    loss = {"make_data": partly_labelled, "weigh": over_labels, "compute_loss_func": summed_cross_entropy}
    assert_agree(tmp_path, method, **loss, **how)


@pytest.mark.parametrize("method", ["sam", "gsam", "fsam"])
def test_an_ascent_part_without_any_label(tmp_path, method):
    """There is no ascent direction, so the update has no perturbation."""
    data = [point | {"labels": torch.tensor(-100)} for point in points(16)[:4]] + points(16)[4:]
    model = perceptron()
    options = {"sam_method": method, "sam_ascent_fraction": 0.5, "per_device_train_batch_size": 8, "max_steps": 4}
    trainer = trained(model, data, tmp_path, compute_loss_func=summed_cross_entropy, sam_rho=0.2, **options)
    assert flat(model).isfinite().all()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert len(losses) == 4 and not torch.equal(flat(model), flat(perceptron()))


def test_fraction_of_losses_that_trainer_adds_up(tmp_path):
    model = {"make_model": bert, "make_data": sentences, "weigh": reference.sum_of_means}
    assert_agree(tmp_path, "gsam", fraction=0.375, batch_size=2, accumulation=4, **model)


def test_fraction_is_the_decimal_number(tmp_path):
    # In floats .28 · 25 is above 7
    assert_agree(tmp_path, "sam", fraction=0.28, batch_size=25, accumulation=1)


@pytest.mark.parametrize("k", [2, 3])
def test_every_ascent_step_sees_the_same_share(tmp_path, k):
    assert_agree(tmp_path, "sam", fraction=0.3, k=k, batch_size=2, accumulation=4)


BERT = {"make_model": bert, "make_data": sentences, "weigh": reference.sum_of_means, "batch_size": 2}
TARGETS = {
    "norm": ("norm", lambda name: "LayerNorm" in name),
    "no norm": ("no_norm", lambda name: "LayerNorm" not in name),
    "regex": (r".*attention\.self", lambda name: ".attention.self." in name),
    "regex of modules with parameters": (r"bert\.(pooler|embeddings)\..*", lambda n: "pooler" in n or "embed" in n),
    "suffixes": (["query", "output.dense"], lambda n: ".query." in n or ".output.dense." in n),
    "a list of one": (["classifier"], lambda name: name.startswith("classifier.")),
}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("method", KNOWN)
def test_target_modules(tmp_path, method, target):
    targets, perturbs = TARGETS[target]
    interval = INTERVALS.get(method, 1)
    assert_agree(tmp_path, method, "adamw", targets=targets, perturbs=perturbs, interval=interval, **BERT)


@pytest.mark.parametrize("method", KNOWN)
def test_parameters_that_are_not_perturbed_on_plain_updates(tmp_path, method):
    targets, perturbs = TARGETS["norm"]
    assert_agree(tmp_path, method, targets=targets, perturbs=perturbs, interval=2, start=0.3, **BERT)


@pytest.mark.parametrize("given", [["layer_norm"], "bert", ["norm"]], ids=str)
def test_target_modules_are_not_parts_of_names(tmp_path, given):
    """A string must match a whole module name and a list has whole components. `bert` includes everything below it."""
    if given == "bert":
        assert_agree(tmp_path, "sam", targets=given, perturbs=lambda name: name.startswith("bert."), **BERT)
    else:
        with pytest.raises(ValueError, match="sam_target_modules"):
            both(tmp_path, "sam", targets=given, **BERT)


def test_regex_that_matches_no_whole_name(tmp_path):
    with pytest.raises(ValueError, match="sam_target_modules"):
        both(tmp_path, "sam", targets="encoder", **BERT)


def norms_of(model):
    outside = left_out(model, "norm")
    return {name for name, p in model.named_parameters() if p not in outside}


def test_norms_of_models_that_define_their_own():
    """Norms are found by the names of classes, and not by the names that a model gives them."""
    sizes = {"vocab_size": 24, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaPreLayerNormConfig(**sizes, intermediate_size=16)
    model = RobertaPreLayerNormForSequenceClassification(config)
    assert norms_of(model) == {name for name, _ in model.named_parameters() if ".LayerNorm." in name}
    llama = LlamaForCausalLM(LlamaConfig(**sizes, intermediate_size=16))
    assert norms_of(llama) == {name for name, _ in llama.named_parameters() if "norm" in name}
    t5 = T5ForConditionalGeneration(T5Config(vocab_size=24, d_model=8, d_kv=4, d_ff=16, num_layers=1, num_heads=2))
    assert norms_of(t5) == {name for name, _ in t5.named_parameters() if "layer_norm" in name}
    normed = perceptron(lambda: nn.BatchNorm1d(6))
    assert norms_of(normed) == {"middle.weight", "middle.bias"}


class Scaled(nn.Module):
    """asam uses parameters' own names: `weight_scale` is a weight, but `weights.bias` is not."""

    def __init__(self):
        super().__init__()
        self.weights = nn.Linear(6, 6)
        self.weight_scale = nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.shift = nn.Parameter(torch.linspace(-2.0, 2.0, 6))

    def forward(self, x):
        return self.weights(x) * self.weight_scale + self.shift


def test_asam_goes_by_the_parameters_own_name(tmp_path):
    assert_agree(tmp_path, "asam", make_model=lambda: perceptron(Scaled), rho=1.0)

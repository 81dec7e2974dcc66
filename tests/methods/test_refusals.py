"""Values and combinations that have no meaning are refused. The message names what does not go together."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import Perceptron, bert, perceptron, points, sentences, trainer_of
from torch import nn
from transformers import default_data_collator

from sam_hf import SAMArguments, SAMTrainingArguments

WRONG = [
    ("sam_rho_schedule", "step"),
    ("sam_rho_schedule", "automatic"),
    ("sam_rho_min", -0.1),
    ("sam_rho_min", math.nan),
    ("sam_rho_min", math.inf),
    ("sam_rho_min", "small"),
    ("sam_rho_warmup_ratio", -0.1),
    ("sam_rho_warmup_ratio", 1.5),
    ("sam_rho_warmup_ratio", math.nan),
    ("sam_interval", 0),
    ("sam_interval", -2),
    ("sam_interval", 2.5),
    ("sam_interval", True),
    ("sam_start_ratio", -0.1),
    ("sam_start_ratio", 1.5),
    ("sam_start_ratio", math.nan),
    ("sam_start_ratio", "half"),
    ("sam_ascent_fraction", 0.0),
    ("sam_ascent_fraction", -0.5),
    ("sam_ascent_fraction", 1.5),
    ("sam_ascent_fraction", math.nan),
    ("sam_ascent_fraction", True),
    ("sam_target_modules", "(unclosed"),
    ("sam_target_modules", []),
    ("sam_target_modules", 3),
    ("sam_target_modules", ["query", 3]),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_wrong_value(name, value):
    with pytest.raises(ValueError) as error:
        SAMArguments(**{name: value})
    message = str(error.value)
    assert f"{name}={value!r}" in message
    assert "\n" not in message


OPTIONS = [
    ("asam", {"eta": -0.1}, "eta"),
    ("asam", {"eta": "small"}, "eta"),
    ("asam", {"alpha": 0.1}, "alpha"),
    ("gsam", {"alpha": math.nan}, "alpha"),
    ("gsam", {"alpah": 0.1}, "alpah"),
    ("wsam", {"gamma": 1.0}, "gamma"),
    ("wsam", {"gamma": 1.5}, "gamma"),
    ("wsam", {"decouple": "maybe"}, "decouple"),
    ("fsam", {"lambda": 1.5}, "lambda"),
    ("fsam", {"lambda": -0.5}, "lambda"),
    ("fsam", {"sigma": math.inf}, "sigma"),
    ("vasso", {"theta": 1.5}, "theta"),
    ("vasso", {"theta": None}, "theta"),
    ("looksam", {"alpha": math.inf}, "alpha"),
    ("looksam", {"k": 5}, "k"),
    ("sam", {"eta": 0.1}, "eta"),
    ("msam", {"beta": 0.1}, "beta"),
    ("nbar", {"rho": 0.1}, "rho"),
    ("nbar", {"alpha": -1.0}, "alpha"),
]


@pytest.mark.parametrize(("method", "options", "named"), OPTIONS, ids=str)
def test_option_that_the_method_does_not_have_or_value_that_is_not_allowed(method, options, named):
    with pytest.raises(ValueError) as error:
        SAMArguments(sam_method=method, sam_method_kwargs=options)
    message = str(error.value)
    assert "sam_method_kwargs" in message and named in message
    (value,) = options.values()
    assert method in message or repr(value) in message
    assert "\n" not in message


def test_message_lists_the_methods_options():
    with pytest.raises(ValueError, match=r"sigma.*lambda|lambda.*sigma"):
        SAMArguments(sam_method="fsam", sam_method_kwargs={"rho": 0.1})


@pytest.mark.parametrize("given", ['{"alpha": 0.1', "alpha=0.1", "[1]", 3, ["alpha"]], ids=str)
def test_options_that_are_not_a_dict(given):
    with pytest.raises(ValueError, match="sam_method_kwargs"):
        SAMArguments(sam_method="gsam", sam_method_kwargs=given)


def test_options_as_json():
    SAMArguments(sam_method="fsam", sam_method_kwargs='{"sigma": 0.5, "lambda": 0.8}')
    SAMArguments(sam_method="fsam", sam_method_kwargs={})


# Micro-batches of 8
COMBINATIONS = [
    ("msam", {"sam_ascent_steps": 2}),
    ("msam", {"sam_p": 3.0}),
    ("msam", {"sam_m": 8}),
    ("msam", {"sam_ascent_fraction": 0.5}),
    ("fsam", {"sam_ascent_steps": 2}),
    ("fsam", {"sam_p": math.inf}),
    ("vasso", {"sam_ascent_steps": 3}),
    ("vasso", {"sam_p": 1.5}),
    ("asam", {"sam_p": 3.0}),
    ("nbar", {"sam_rho": 0.1}),
    ("nbar", {"sam_rho": 0.0}),
    ("nbar", {"sam_rho_schedule": "linear"}),
    ("nbar", {"sam_p": 3.0}),
    ("nbar", {"sam_ascent_steps": 2}),
    ("nbar", {"sam_m": 8}),
    ("nbar", {"sam_ascent_fraction": 0.5}),
    ("nbar", {"sam_target_modules": "norm"}),
]


@pytest.mark.parametrize(("method", "options"), COMBINATIONS, ids=str)
def test_combination(method, options):
    (name,) = options
    with pytest.raises(ValueError) as error:
        SAMTrainingArguments("out", sam_method=method, gradient_accumulation_steps=2, **options)
    message = str(error.value)
    assert name in message and repr(method).strip("'") in message
    assert "\n" not in message


@pytest.mark.parametrize("method", ["sam", "gsam", "wsam", "looksam"])
def test_combination_that_has_a_meaning(method):
    SAMArguments(sam_method=method, sam_p=3.0, sam_ascent_steps=2, sam_ascent_fraction=0.5, sam_interval=2)
    SAMArguments(sam_method="asam", sam_ascent_steps=2)


def test_combination_that_a_search_sets(tmp_path):
    """The search sets it after the trainer is built and before it trains."""
    trainer = trainer_of(perceptron(), points(8), tmp_path, sam_method="fsam")
    trainer.args.sam_ascent_steps = 2
    with pytest.raises(ValueError, match=r"sam_ascent_steps.*fsam|fsam.*sam_ascent_steps"):
        trainer.train()


# Trainer's own names. The first has no momentum, the others keep no first moment
@pytest.mark.parametrize(
    "optim", ["sgd", "adafactor", "rmsprop", "adagrad", "schedule_free_adamw", "schedule_free_sgd"]
)
def test_momentum_sam_without_a_momentum(tmp_path, optim):
    if optim.startswith("schedule_free"):
        pytest.importorskip("schedulefree")
    model = perceptron()
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    with pytest.raises(ValueError, match="msam") as error:
        trainer_of(model, points(8), tmp_path, sam_method="msam", optim=optim).train()
    assert "\n" not in str(error.value)
    assert not passes, "it is known before any time is spent"


class Projected(torch.optim.SGD):
    """An optimizer whose first moment does not have the shape of the weights, as in GaLore and APOLLO."""

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["exp_avg"] = torch.ones(1)


def test_momentum_sam_with_a_projected_momentum(tmp_path):
    trainer = trainer_of(perceptron(), points(8), tmp_path, sam_method="msam")
    trainer.optimizer = Projected(trainer.model.parameters(), lr=0.1, momentum=0.9)
    with pytest.raises(ValueError, match=r"first moment, but test_refusals\.Projected keeps none"):
        trainer.train()


def of_module(name, base=torch.optim.AdamW):
    """An optimizer class of another package. Those that quantise their moments are not installed for the tests."""
    return type("AdamW8bit", (base,), {"__module__": name})


class Wrapping(torch.optim.Optimizer):
    """An optimizer around another one, as Lookahead is."""

    def __init__(self, inner):
        self.optimizer, self.param_groups, self.defaults, self.state = inner, inner.param_groups, inner.defaults, {}

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)


@pytest.mark.parametrize("wrap", [lambda inner: inner, Wrapping], ids=["itself", "wrapped"])
@pytest.mark.parametrize(
    "module", ["bitsandbytes.optim.adamw", "torchao.optim.adam", "schedulefree.wrap_schedulefree"]
)
def test_momentum_sam_with_a_momentum_that_cannot_be_read(tmp_path, module, wrap):
    model, passes = perceptron(), []
    model.register_forward_hook(lambda *_: passes.append(1))
    trainer = trainer_of(model, points(8), tmp_path, sam_method="msam")
    trainer.optimizer = wrap(of_module(module)(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match=f"but {module}.AdamW8bit keeps none") as error:
        trainer.train()
    assert not passes
    assert "optim='adamw_torch'" in str(error.value) and "Use AdamW" not in str(error.value)


def test_momentum_sam_with_a_projection_that_is_known_before_the_first_step(tmp_path):
    model = perceptron()
    trainer = trainer_of(model, points(8), tmp_path, sam_method="msam")
    groups = [{"params": list(model.parameters()), "rank": 2, "update_proj_gap": 50, "scale": 0.25}]
    trainer.optimizer = torch.optim.AdamW(groups, lr=0.1)  # the groups of GaLore
    with pytest.raises(ValueError, match="keeps none"):
        trainer.train()
    assert trainer.state.global_step == 0


class Signs(torch.optim.Optimizer):
    """An optimizer without any state."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            parameter -= 0.1 * parameter.grad.sign()


@pytest.mark.parametrize("wrap", [lambda inner: inner, Wrapping], ids=["itself", "wrapped"])
def test_momentum_sam_with_an_optimizer_that_never_has_a_momentum(tmp_path, wrap):
    """It is known after the first step, and training does not go on without SAM."""
    trainer = trainer_of(perceptron(), points(8), tmp_path, sam_method="msam")
    trainer.optimizer = wrap(Signs(trainer.model.parameters()))
    with pytest.raises(ValueError, match=r"but test_refusals\.Signs keeps none"):
        trainer.train()
    assert trainer.state.global_step == 1


def test_balancedness_without_adapters(tmp_path):
    with pytest.raises(ValueError, match="nbar") as error:
        trainer_of(bert(), sentences(8), tmp_path, sam_method="nbar").train()
    assert "LoRA" in str(error.value)


def test_balancedness_of_other_adapters(tmp_path):
    peft = pytest.importorskip("peft")
    config = peft.IA3Config(task_type="SEQ_CLS", target_modules=["query"], feedforward_modules=[])
    with pytest.raises(ValueError, match="LoRA"):
        trainer_of(peft.get_peft_model(bert(), config), sentences(8), tmp_path, sam_method="nbar").train()


class OwnAdapter(Perceptron):
    """A model with names of PEFT's for other things."""

    def __init__(self, kind):
        super().__init__()
        a, b = nn.Linear(5, 2), nn.Linear(2, 6)
        self.lora_A, self.lora_B = (a, b) if kind == "module" else (a.weight, b.weight)


@pytest.mark.parametrize("kind", ["module", "parameter"])
def test_balancedness_of_adapters_that_are_not_pefts(tmp_path, kind):
    with pytest.raises(ValueError, match="LoRA"):
        trainer_of(OwnAdapter(kind).double(), points(8), tmp_path, sam_method="nbar").train()


@pytest.mark.parametrize("targets", ["no_such_module", ["no_such_module"], "norm"], ids=str)
def test_targets_that_match_nothing(tmp_path, targets):
    """The perceptron has no normalisation layers."""
    with pytest.raises(ValueError, match="sam_target_modules"):
        trainer_of(perceptron(), points(8), tmp_path, sam_target_modules=targets).train()


def packed(examples):
    """Return a batch with an input whose first dimension is not the number of examples."""
    return default_data_collator(examples) | {"lengths": torch.tensor([len(examples)])}


class PackedPerceptron(Perceptron):
    def forward(self, x, labels=None, lengths=None):
        return super().forward(x, labels)


def test_a_share_of_inputs_that_cannot_be_cut(tmp_path):
    options = {"sam_ascent_fraction": 0.5, "remove_unused_columns": False}
    trainer = trainer_of(PackedPerceptron().double(), points(8), tmp_path, **options)
    trainer.data_collator = packed
    with pytest.raises(ValueError, match=r"sam_ascent_fraction.*lengths"):
        trainer.train()

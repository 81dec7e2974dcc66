"""nBAR on LoRA's pairs follows the formula, in one pass per update."""

from __future__ import annotations

import math

import pytest
import reference
import torch
from reference_methods import nbar
from runs import OPTIMIZERS, UPDATES, rates_of
from tiny import Watch, bert, relative_difference, sentences, trainer_of, windows_of
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

peft = pytest.importorskip("peft")


def adapted(**config):
    settings = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"], "init_lora_weights": False}
    torch.manual_seed(0)
    return peft.get_peft_model(bert(), peft.LoraConfig(**(settings | config))).double()


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def strength(schedule: str, progress: float) -> float:
    return {"constant": 1.0, "linear": 1 - progress, "cosine": (1 + math.cos(math.pi * progress)) / 2}[schedule]


def by_hand(model, data, settings, alpha, schedule="constant", max_grad_norm=0.0) -> torch.Tensor:
    """Return the trained parameters after all updates, as one vector."""
    names, shapes = list(trainable(model)), [p.shape for p in trainable(model).values()]
    places, start = {}, 0
    for name, shape in zip(names, shapes, strict=True):
        places[name] = slice(start, start + shape.numel())
        start += shape.numel()

    def loss(w, example):
        weights = {name: w[places[name]].view(shape) for name, shape in zip(names, shapes, strict=True)}
        batch = {key: value.unsqueeze(0) for key, value in example.items()}
        return torch.func.functional_call(model.train(), weights, (), batch)["loss"]

    w = nn.utils.parameters_to_vector(trainable(model).values()).detach().clone()
    optimizer = reference.SGD(momentum=0.9)
    if settings["optim"] != "sgd":
        decay = [torch.full((s.numel(),), 0.0 if "bias" in n else 0.1) for n, s in zip(names, shapes, strict=True)]
        optimizer = reference.AdamW(torch.cat(decay).double())
    rates = rates_of(settings["lr_scheduler_type"], settings["learning_rate"])
    for t, (window, lr) in enumerate(zip(windows_of(data, 4, 2, UPDATES), rates, strict=True)):
        examples = [example for micro_batch in reference.sum_of_means(window) for example in micro_batch]
        g = reference.clip(reference.value_and_gradient(loss, w, examples)[1], max_grad_norm)
        now = alpha * strength(schedule, t / (UPDATES - 1))
        for name in names:
            if "lora_A" in name:
                a, b = places[name], places[name.replace("lora_A", "lora_B")]
                w[a], w[b] = nbar(w[a], w[b], g[a], g[b], now, lr)
        w = optimizer.step(w, g, lr)
    return w


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("lr_scheduler_type", ["constant", "linear"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_update_of_the_formula(tmp_path, optimizer, lr_scheduler_type, schedule):
    settings = OPTIMIZERS[optimizer] | {"lr_scheduler_type": lr_scheduler_type}
    model, data = adapted(), sentences(16)
    expected = by_hand(model, data, settings, 0.5, schedule, max_grad_norm=1.0)
    before = nn.utils.parameters_to_vector(trainable(model).values()).detach().clone()
    kwargs = {"alpha": 0.5, "schedule": schedule}
    options = settings | {"sam_method": "nbar", "sam_method_kwargs": kwargs, "max_grad_norm": 1.0}
    trainer_of(model, data, tmp_path, gradient_accumulation_steps=2, **options).train()
    after = nn.utils.parameters_to_vector(trainable(model).values()).detach()
    assert relative_difference(after, before) > 1e-3
    assert relative_difference(after, expected) < 1e-9


def test_alpha_0_is_plain_training(tmp_path):
    weights = []
    for options in ({"sam_method": "nbar", "sam_method_kwargs": {"alpha": 0.0}}, {"sam_method": "none"}):
        model = adapted()
        trainer_of(model, sentences(16), tmp_path, **options).train()
        weights.append(nn.utils.parameters_to_vector(trainable(model).values()).detach())
    assert torch.equal(*weights)


def test_one_pass(tmp_path):
    counts = []
    for method in ("nbar", "none"):
        with FlopCounterMode(display=False) as counter:
            trainer_of(adapted(), sentences(16), tmp_path, sam_method=method, max_steps=2).train()
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


def test_an_update_that_the_scaler_skips_leaves_the_pairs_alone(tmp_path):
    model, passes, seen = adapted(), [], []

    def spoil(module, args, output):
        passes.append(len(passes))
        if len(passes) == 2:
            output["loss"].register_hook(lambda gradient: gradient * torch.inf)

    def remember(event, model):
        if event == "on_step_end":
            seen.append(nn.utils.parameters_to_vector(trainable(model).values()).detach().clone())

    model.base_model.register_forward_hook(spoil)
    trainer = trainer_of(model, sentences(16), tmp_path, sam_method="nbar", max_steps=3, callbacks=[Watch(remember)])
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    trainer.train()
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_adapters_too_coarse_for_the_factor_are_refused(tmp_path):
    model = adapted().to(torch.bfloat16)
    with pytest.raises(ValueError, match=r"rounds to 1 in torch\.bfloat16"):
        trainer_of(model, sentences(8), tmp_path, sam_method="nbar").train()


def test_an_optimizer_that_steps_none_of_the_adapters_is_refused(tmp_path):
    """It has copies of them, for example, and nothing would be balanced."""
    model = adapted()
    trainer = trainer_of(model, sentences(8), tmp_path, sam_method="nbar")
    copies = [nn.Parameter(p.detach().clone()) for p in trainable(model).values()]
    trainer.optimizer = torch.optim.SGD(copies, lr=0.1)
    with pytest.raises(ValueError, match="it steps none of them"):
        trainer.train()

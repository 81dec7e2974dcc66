"""Runs of SAMTrainer and the same runs of the reference, for every method and axis."""

from __future__ import annotations

import math
from typing import Any

import pytest
import reference
import torch
from reference_methods import ARGUMENTS, Run, Update
from tiny import flat, loss_of, perceptron, points, relative_difference, trainer_of, windows_of

UPDATES, RHO = 6, 0.2
OPTIMIZERS = {
    "momentum": {"optim": "sgd", "optim_args": "momentum=0.9", "learning_rate": 0.05},
    "adamw": {"optim": "adamw_torch", "learning_rate": 0.01, "weight_decay": 0.1},
}


def rates_of(schedule: str, base: float) -> list[float]:
    """Return the learning rates of Trainer's schedules `constant`, `linear` and `cosine` without warmup."""
    progress = [t / UPDATES for t in range(UPDATES)]
    return {
        "constant": [base for _ in progress],
        "linear": [base * (1 - x) for x in progress],
        "cosine": [base * (1 + math.cos(math.pi * x)) / 2 for x in progress],
    }[schedule]


def base_optimizer(settings: dict[str, Any], model, momentum: float) -> reference.SGD | reference.AdamW:
    if settings["optim"] == "sgd":
        return reference.SGD(momentum)
    # Trainer's rule: no weight decay for biases and normalisation weights
    decays = [
        torch.full((p.numel(),), 0.0 if "bias" in name or "LayerNorm" in name else settings["weight_decay"])
        for name, p in model.named_parameters()
    ]
    return reference.AdamW(torch.cat(decays).double())


def coordinates(model, chosen) -> torch.Tensor:
    """Return a flat boolean vector: whether `chosen` accepts the name of the parameter."""
    return torch.cat([torch.full((p.numel(),), chosen(name)) for name, p in model.named_parameters()])


def reference_run(
    model, settings: dict[str, Any], momentum: float, batch_size: int, perturbs, *, rho: float = RHO, **axes: Any
) -> Run:
    return Run(
        loss_of(model),
        flat(model),
        base_optimizer(settings, model, momentum),
        batch_size,
        UPDATES,
        settings["learning_rate"],
        rho,
        mask=None if perturbs is None else coordinates(model, perturbs),
        # asam's rule: the parameter's own name, and not that of its module
        scaled=coordinates(model, lambda name: "weight" in name.rsplit(".", 1)[-1]),
        **axes,
    )


def both(
    output_dir,
    method: str,
    optimizer: str = "momentum",
    *,
    make_model=perceptron,
    make_data=points,
    weigh=reference.mean_of_means,
    batch_size: int = 4,
    accumulation: int = 2,
    size: int | None = None,
    perturbs=None,
    options: dict[str, Any] | None = None,
    lr_scheduler_type: str = "constant",
    max_grad_norm: float = 0.0,
    compute_loss_func=None,
    targets: Any = "all",
    momentum: float = 0.9,
    trainer_options: dict[str, Any] | None = None,
    **axes: Any,
) -> tuple[Run, list[Update], Any]:
    """
    Train the same run with the reference and with SAMTrainer.

    Args:
        perturbs: Which parameter names the reference perturbs; `targets` is the argument for the same parameters.
        trainer_options: Arguments of the trainer that are added or replaced.
        **axes: Axes by the names of the reference.
    """
    settings = OPTIMIZERS[optimizer]
    data = make_data(size or 2 * batch_size * accumulation)
    model = make_model()
    axes |= {"method": method, "options": options or {}, "max_grad_norm": max_grad_norm}
    run = reference_run(model, settings, momentum, batch_size, perturbs, **axes)
    windows = map(weigh, windows_of(data, batch_size, accumulation, UPDATES))
    rates = rates_of(lr_scheduler_type, settings["learning_rate"])
    expected = [run.update([window], lr) for window, lr in zip(windows, rates, strict=True)]
    arguments = {
        "sam_method_kwargs": options,
        "sam_target_modules": targets,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": accumulation,
        "max_steps": UPDATES,
        "lr_scheduler_type": lr_scheduler_type,
        "max_grad_norm": max_grad_norm,
    }
    given = {argument: getattr(run, name) for name, argument in ARGUMENTS.items()}
    given |= arguments | settings | (trainer_options or {})
    trainer = trainer_of(model, data, output_dir, compute_loss_func=compute_loss_func, **given)
    trainer.train()
    return run, expected, trainer


def assert_agree(output_dir, method: str, optimizer: str = "momentum", **how: Any) -> tuple[Run, list[Update], Any]:
    """Assert that weights agree to 1e-9 after six updates, and that the logs of each update agree."""
    run, expected, trainer = both(output_dir, method, optimizer, **how)
    assert trainer.state.global_step == UPDATES
    assert relative_difference(run.w, flat(how.get("make_model", perceptron)())) > 1e-3
    assert relative_difference(flat(trainer.model), run.w) < 1e-9
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["loss"] for entry in logged] == pytest.approx([update.loss for update in expected], rel=1e-6)
    for entry, update in zip(logged, expected, strict=True):
        assert_metrics(entry, update, comparable=run.fraction == 1.0 and method != "msam")
    return run, expected, trainer


def assert_metrics(entry: dict[str, float], update: Update, comparable: bool) -> None:
    one_loss = update.perturbed_loss is None  # ε = 0 on a plain update, and msam makes no pass at w
    perturbed_loss = update.loss if one_loss else update.perturbed_loss
    assert entry["sam_rho"] == pytest.approx(update.rho, rel=1e-6)
    assert entry["sam_perturbed_loss"] == pytest.approx(perturbed_loss, rel=1e-6)
    assert ("sam_ascent_grad_norm" in entry) != one_loss
    assert ("sam_sharpness" in entry) == comparable
    if comparable:
        assert entry["sam_sharpness"] == pytest.approx(perturbed_loss - update.loss, rel=1e-4, abs=1e-7)
    if "sam_grad_cosine" in entry:
        assert entry["sam_grad_cosine"] == pytest.approx(update.cosine, rel=1e-5)

"""A SAM loop in plain torch around a given optimizer and scheduler, with which Trainer's features must agree."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tiny import trainer_of
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import TrainerCallback

Batch = dict[str, Tensor]
# A function of a model, a batch and its window that returns what the micro-batch adds to the loss of the window
Loss = Callable[[nn.Module, Batch, list[Batch]], Tensor]


@dataclass
class Update:
    """The values of one update, which Trainer must log."""

    loss: float
    perturbed_loss: float
    ascent_norm: float
    grad_norm: float
    learning_rate: float


def mean_of_means(model: nn.Module, batch: Batch, window: list[Batch]) -> Tensor:
    """Return what Trainer makes of a model that returns the mean over each micro-batch."""
    return model(**batch)["loss"] / len(window)


def sum_of_means(model: nn.Module, batch: Batch, window: list[Batch]) -> Tensor:
    """Return what Trainer makes of models that accept loss kwargs and ignore them, such as BERT's classifier."""
    return model(**batch)["loss"]


def collated(examples: Sequence[dict[str, Tensor]]) -> Batch:
    return {key: torch.stack([example[key] for example in examples]) for key in examples[0]}


def real_optimizer(model: nn.Module, data, output_dir, updates: int, **changes: Any):
    """Return the optimizer and the scheduler that Trainer itself makes for `model`."""
    trainer = trainer_of(model, data, output_dir, **changes)
    trainer.create_optimizer_and_scheduler(num_training_steps=updates)
    return trainer.optimizer, trainer.lr_scheduler


def train_by_hand(
    model: nn.Module,
    windows: list[list[list[dict[str, Tensor]]]],
    optimizer: Optimizer,
    scheduler: Any = None,
    *,
    rho: float,
    loss: Loss = mean_of_means,
    max_grad_norm: float = 0.0,
    random_states: Sequence[Tensor] = (),
    after_update: Callable[[int], None] = lambda update: None,
) -> list[Update]:
    """
    Make one update per window, on its accumulated gradient.

    Args:
        random_states: the state that the CPU generator is set to before each of an update's two passes.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    stepped = {p for group in optimizer.param_groups for p in group["params"]}
    history = []
    for index, window in enumerate(windows):
        batches = [collated(examples) for examples in window]
        model.train()
        if hasattr(optimizer, "train"):
            optimizer.train()

        def one_pass(batches=batches, index=index) -> tuple[float, list[Tensor | None]]:
            if random_states:
                torch.set_rng_state(random_states[index])
            total = sum(loss(model, batch, batches) for batch in batches)
            return float(total.detach()), list(torch.autograd.grad(total, parameters, allow_unused=True))

        value, ascent = one_pass()
        w = [p.detach().clone() for p in parameters]
        pairs = [(p, g) for p, g in zip(parameters, ascent, strict=True) if g is not None and p in stepped]
        norm = sum(g.double().pow(2).sum() for _, g in pairs).sqrt()
        with torch.no_grad():
            for p, g in pairs:
                p += (rho * g.double() / norm).to(p.dtype)
        perturbed_value, descent = one_pass()
        with torch.no_grad():
            for p, before, g in zip(parameters, w, descent, strict=True):
                p.copy_(before)
                p.grad = g
        limit = max_grad_norm if max_grad_norm > 0 else torch.inf
        grad_norm = float(nn.utils.clip_grad_norm_(parameters, limit))
        rate = optimizer.param_groups[0]["lr"]
        optimizer.step()
        if scheduler is not None:
            scheduler.step()
        history.append(Update(value, perturbed_value, float(norm), grad_norm, rate))
        after_update(index + 1)
    return history


class RandomStates(TrainerCallback):
    """Keeps the state of the CPU generator at the start of every update."""

    def __init__(self):
        self.states: list[Tensor] = []

    def on_step_begin(self, *args, **kwargs):
        self.states.append(torch.get_rng_state())


def training_logs(trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]

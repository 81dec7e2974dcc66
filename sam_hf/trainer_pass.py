"""One pass over examples as the Trainer below the mixin makes it: counted once, weighted right, no side effects."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .batch_norm import statistics_held
from .counters import uncounted
from .gradients import no_broadcast
from .layout import Layout
from .loss_share import is_mean, label_share, weighted_by
from .passes import Piece
from .rng import RandomState
from .slices import first_dimension


class TrainerPass:
    """
    For one training run.

    Args:
        trainer ([`~transformers.Trainer`]): whose passes these are.
        training_step: `training_step` as it is below the mixin.
    """

    def __init__(self, trainer: Any, training_step: Callable[..., Tensor]):
        self._trainer = trainer
        self._training_step = training_step
        self._loss_is_mean: bool | None = None

    def forward_backward(self, model: nn.Module, piece: Piece, num_items: Tensor | int | None, first: bool) -> Tensor:
        """One forward and backward of the Trainer below, over its own copy of the inputs: overrides pop from them."""
        trainer = self._trainer
        weighted: AbstractContextManager = nullcontext()
        # Of no labels at all, a mean weighs 0 and a sum is 0: it need not be known yet
        if piece.whole is not None and self._loss_is_mean is not False:
            share = label_share(piece.inputs, piece.whole)
            weighted = weighted_by(trainer, share, not self._expects_scaled_loss(num_items))
        # Trainers count the first pass over each micro-batch, in their metrics as in `current_flos`
        with weighted, nullcontext() if first else uncounted(trainer):
            loss = self._training_step(model, copy.copy(piece.inputs), num_items)
        if not first:
            trainer.current_flos += trainer.floating_point_ops(piece.inputs)
        return loss

    def loss_without_gradient(self, model: nn.Module, inputs: dict[str, Any], num_items: Any) -> Tensor:
        """The loss at the weights as they are. Draws the random numbers of a plain pass, and has no other effect."""
        trainer = self._trainer
        with torch.no_grad(), no_broadcast(model), uncounted(trainer), trainer.compute_loss_context_manager():
            prepared = trainer._prepare_inputs(copy.copy(inputs))
            return trainer.compute_loss(model, prepared, num_items_in_batch=num_items)

    def ask_if_loss_is_mean(self, layout: Layout, inputs: dict[str, Any], num_items: Any) -> None:
        """
        Before slices are weighted: asked once a run, of the first micro-batch with labels. Leaves generators and
        running statistics alone.

        All processes ask and answer together: passes over shards communicate, and the labels may be on one of them.
        """
        if self._loss_is_mean is not None:
            return
        first_dimension(inputs)  # inputs that cannot be cut are refused before the model sees them
        layout.model.train()
        random = RandomState(layout.random_devices)

        def loss(divisor: Any) -> Tensor:
            random.restore()
            return self.loss_without_gradient(layout.model, inputs, divisor)

        with statistics_held(layout.normalisation):
            answer = is_mean(loss, num_items)
        random.restore()
        votes = torch.tensor([answer is True, answer is False], dtype=torch.float32, device=self._trainer.args.device)
        means, sums = self._trainer.accelerator.reduce(votes, reduction="sum").tolist()
        if means or sums:
            self._loss_is_mean = not sums

    def loss_scale(self) -> Tensor | None:
        """The factor that fp16's scaler puts on the loss; `None` without one."""
        scaler = self._trainer.accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return None
        # `get_scale` would wait for the device
        return scaler.scale(torch.ones((), device=self._trainer.args.device))

    def _expects_scaled_loss(self, num_items: Tensor | int | None) -> bool:
        """Whether Trainer takes the loss as normalised over the window, and does not divide it (its own rule)."""
        trainer = self._trainer
        if trainer.loss_is_scaled_for_ga is not None:
            return trainer.loss_is_scaled_for_ga
        return (trainer.model_accepts_loss_kwargs and num_items is not None) or trainer.compute_loss_func is not None

"""One pass over examples as the Trainer below the mixin makes it: counted once, weighted right, no side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn

from ..compat import uncounted
from ..update.gradients import no_broadcast
from ..update.groups import Piece
from ..update.model_structure import ModelStructure
from ..update.random_state import RandomState
from ..update.running_statistics import statistics_held
from ..update.slices import first_dimension
from .loss_weights import is_mean, label_share, labels_in, weighted_by


class TrainerPass:
    """
    For one training run.

    Args:
        trainer ([`~transformers.Trainer`]): whose passes these are.
        training_step: `training_step` as it is below the mixin.

    Attributes:
        unlogged: what overrides log now is of a pass that plain training does not make.
    """

    def __init__(self, trainer: Any, training_step: Callable[..., Tensor]):
        self._trainer = trainer
        self._training_step = training_step
        self._loss_is_mean: bool | None = None
        self.unlogged = False

    def forward_backward(
        self, model: nn.Module, inputs: dict[str, Any], of: dict[str, Any], num_items: Any, counted: bool
    ) -> Tensor:
        """One forward and backward of the Trainer below, over its own copy of the inputs, part of the micro-batch."""
        trainer = self._trainer
        weighted: AbstractContextManager = nullcontext()
        # Of no labels at all, a mean weighs 0 and a sum is 0: it need not be known yet
        if inputs is not of and self._loss_is_mean is not False:
            share = label_share(inputs, of)
            weighted = weighted_by(trainer, share, not self._expects_scaled_loss(num_items))
        # Trainers count and log one pass over each micro-batch, in their metrics as in `current_flos`
        with weighted, nullcontext() if counted else self._aside():
            loss = self._training_step(model, _copied(inputs), num_items)
        if not counted:
            trainer.current_flos += trainer.floating_point_ops(inputs)
        return loss

    def loss_without_gradient(self, model: nn.Module, inputs: dict[str, Any], num_items: Any) -> Tensor:
        """The loss at the weights as they are. Draws the random numbers of a plain pass, and has no other effect."""
        trainer = self._trainer
        with torch.no_grad(), no_broadcast(model), self._aside(), trainer.compute_loss_context_manager():
            prepared = trainer._prepare_inputs(_copied(inputs))
            return trainer.compute_loss(model, prepared, num_items_in_batch=num_items)

    def ask_if_loss_is_mean(self, layout: ModelStructure, inputs: dict[str, Any], num_items: Any) -> None:
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

    def ascent_share(self, pieces: Sequence[Piece], shared: bool) -> Tensor:
        """
        The share of a group's loss that the examples have which its ascent gradient is computed on. 1 where none of
        them counts: 0 times their gradient is 0, whatever it is divided by.

        Args:
            shared: the gradient is a mean over processes, whose examples are one group then.
        """
        weights: list[tuple[Any, Any]]
        if self._loss_is_mean is False:
            weights = [(labels_in(p.ascent_inputs) if p.ascent_inputs else 0, labels_in(p.inputs)) for p in pieces]
        else:
            weights = [
                (
                    label_share(p.ascent_inputs, p.micro_batch) if p.ascent_inputs else 0,
                    label_share(p.inputs, p.micro_batch),
                )
                for p in pieces
            ]
        sums = torch.stack([self._number(sum(part)) for part in zip(*weights, strict=True)])
        part, whole = self._trainer.accelerator.reduce(sums, reduction="sum") if shared else sums
        return torch.where(part > 0, part / whole, 1)

    def _number(self, value: Tensor | float) -> Tensor:
        device = self._trainer.args.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        # `torch.tensor` would wait for the device
        return (
            value.to(device, dtype) if isinstance(value, Tensor) else torch.full((), value, dtype=dtype, device=device)
        )

    def loss_scale(self) -> Tensor | None:
        """The factor that fp16's scaler puts on the loss; `None` without one."""
        scaler = self._trainer.accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return None
        # `get_scale` would wait for the device
        return scaler.scale(torch.ones((), device=self._trainer.args.device))

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """What overrides count and log in a pass that plain training does not make is neither counted nor logged."""
        before, self.unlogged = self.unlogged, True
        try:
            with uncounted(self._trainer):
                yield
        finally:
            self.unlogged = before

    def _expects_scaled_loss(self, num_items: Tensor | int | None) -> bool:
        """Whether Trainer takes the loss as normalised over the window, and does not divide it (its own rule)."""
        trainer = self._trainer
        if trainer.loss_is_scaled_for_ga is not None:
            return trainer.loss_is_scaled_for_ga
        return (trainer.model_accepts_loss_kwargs and num_items is not None) or trainer.compute_loss_func is not None


def _copied(inputs: Any) -> Any:
    """Inputs that one pass may pop from and change in place, as overrides of `compute_loss` do."""
    return recursively_apply(torch.clone, inputs)

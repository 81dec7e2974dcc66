"""Runs the passes of an update through the `training_step` of the Trainer below the mixin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn

from ..compat import loss_shifts_labels, prepare_inputs, uncounted
from ..tensors.rounding import LOW_PRECISION
from ..update.gradients import no_broadcast
from ..update.groups import Piece, first_dimension
from ..update.model_structure import ModelStructure, perturbed_parameters
from ..update.random_state import RandomState
from ..update.runner import PassRunner
from ..update.running_means import RunningMeans
from ..update.running_statistics import statistics_frozen, statistics_held
from .loss_weights import MEAN, NEITHER, SUM, count_labels, label_share, loss_reduction, weighted_by


class TrainerRunner(PassRunner):
    """
    One runner per training run.

    Args:
        trainer ([`SAMMixin`]): the trainer whose passes these are.
        training_step: its `training_step` below the mixin.

    Attributes:
        is_aside: the present pass is one that plain training does not make. Trainer must not log what it reports.
    """

    def __init__(self, trainer: Any, training_step: Callable[..., Tensor]):
        self.means = RunningMeans(trainer.args.device)
        self.is_aside = False
        self._trainer = trainer
        self._training_step = training_step
        self._model: nn.Module | None = None
        self._num_items: Any = None
        self._structure: ModelStructure | None = None
        self._chosen: tuple[list[nn.Parameter], list[nn.Parameter]] | None = None
        self._reduction: str | None = None

    def begin_update(self) -> None:
        """Look at the optimizer's parameters again: some may have been frozen or unfrozen since the last update."""
        self._chosen = None

    def prepare(self, model: nn.Module, num_items: Any) -> None:
        """Take the arguments of the present call of `training_step`."""
        self._model, self._num_items = model, num_items

    @property
    def model(self) -> nn.Module:
        assert self._model is not None
        return self._model

    @property
    def structure(self) -> ModelStructure:
        args, targets = self._trainer.args, self._trainer.sam_args.sam_target_modules
        structure = self._structure
        if structure is None or structure.model is not self.model or structure.targets != targets:
            structure = self._structure = ModelStructure(self.model, args.device, targets, args.n_gpu)
            self._chosen = None
        return structure

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        return self._choose_parameters()[0]

    @property
    def perturbed(self) -> Sequence[nn.Parameter]:
        return self._choose_parameters()[1]

    @property
    def gradient_state(self) -> Any:
        return self._trainer.accelerator.gradient_state

    def plain_step(self, batch: dict[str, Any]) -> Tensor:
        with self._frozen_statistics():
            return self._training_step(self.model, batch, self._num_items)

    def forward_backward(self, inputs: dict[str, Any], micro_batch: dict[str, Any], counted: bool) -> Tensor:
        trainer, share = self._trainer, None
        weighted: AbstractContextManager = nullcontext()
        # As long as no example has a label, the reduction is unknown and not needed: a mean weighs 0, and a sum is 0
        if inputs is not micro_batch and self._reduction != SUM:
            share = label_share(inputs, micro_batch, loss_shifts_labels(trainer))
            weighted = weighted_by(trainer, share, not self._loss_is_scaled())
        with weighted, nullcontext() if counted else self._aside(), self._frozen_statistics():
            loss = self._training_step(self.model, _copied(inputs), self._num_items)
        if not counted:
            trainer.current_flos += trainer.floating_point_ops(inputs)
        # The mean over a slice without a label is NaN, and weighs 0
        return torch.where(share.to(loss.device) > 0, loss, 0) if isinstance(share, Tensor) else loss

    def advance_random(self, batch: dict[str, Any]) -> None:
        self._loss_without_gradient(batch, self._num_items)

    def find_loss_reduction(self, batch: dict[str, Any]) -> None:
        """
        Compute the loss of `batch` with two numbers of items, once per run. See [`loss_reduction`].

        Random number generators and running statistics stay as they are. All processes take part and get the same
        answer: passes over shards communicate, and perhaps only one process has labels.
        """
        if self._reduction is not None:
            return
        first_dimension(batch)  # inputs that cannot be cut are refused before the model sees them
        self.model.train()
        random = RandomState(self.structure.random_devices)

        def loss(num_items: Any) -> Tensor:
            random.restore()
            return self._loss_without_gradient(batch, num_items)

        with statistics_held(self.structure.normalisation):
            answer = loss_reduction(loss, self._num_items, self._tolerance())
        random.restore()
        answers = (NEITHER, SUM, MEAN)
        votes = torch.tensor([answer == one for one in answers], dtype=torch.float32, device=self._trainer.args.device)
        counts = self._trainer.accelerator.reduce(votes, reduction="sum").tolist()
        found = [one for one, count in zip(answers, counts, strict=True) if count]
        if found[:1] == [NEITHER]:
            raise ValueError(
                "sam_m below per_device_train_batch_size and sam_ascent_fraction need a loss that is a mean over the "
                f"micro-batch, or a sum divided by num_items_in_batch. The loss of {type(self._trainer).__name__} is "
                "neither: with twice the number of items it neither stays the same nor halves. Leave "
                "sam_ascent_fraction out, and give a sam_m that is a multiple of per_device_train_batch_size."
            )
        self._reduction = found[0] if found else None

    def ascent_share(self, pieces: Sequence[Piece], averaged: bool) -> Tensor:
        """Return the share, and 1 if none of the examples with an ascent pass counts: their gradient is 0 anyway."""
        shifted = loss_shifts_labels(self._trainer)

        def weight(inputs: dict[str, Any] | None, piece: Piece) -> Any:
            if not inputs:
                return 0
            if self._reduction == SUM:
                return count_labels(inputs, shifted)
            return label_share(inputs, piece.micro_batch, shifted)

        part = self._number(sum(weight(piece.ascent_inputs, piece) for piece in pieces))
        whole = self._number(sum(weight(piece.inputs, piece) for piece in pieces))
        sums = torch.stack([part, whole])
        part, whole = self._trainer.accelerator.reduce(sums, reduction="sum") if averaged else sums
        return torch.where(part > 0, part / whole, 1)

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        return self._trainer.accelerator.reduce(tensors, reduction="mean")

    def loss_scale(self) -> Tensor | None:
        scaler = self._trainer.accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return None
        # `get_scale` would wait for the device
        return scaler.scale(torch.ones((), device=self._trainer.args.device))

    def _choose_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters that can have a gradient, and those that are perturbed."""
        structure = self.structure
        if self._chosen is None:
            stepped = perturbed_parameters(list(structure.names), self._trainer.optimizer)
            everything = list(dict.fromkeys([*stepped, *structure.names]))
            self._chosen = everything, [p for p in stepped if structure.covers(p)]
        return self._chosen

    def _loss_without_gradient(self, inputs: dict[str, Any], num_items: Any) -> Tensor:
        """Return the loss at the present weights. It draws the random numbers of a plain pass and changes nothing."""
        trainer = self._trainer
        with torch.no_grad(), no_broadcast(self.model), self._aside(), self._frozen_statistics():
            with trainer.compute_loss_context_manager():
                prepared = prepare_inputs(trainer, _copied(inputs))
                return trainer.compute_loss(self.model, prepared, num_items_in_batch=num_items)

    def _frozen_statistics(self) -> AbstractContextManager:
        if self._trainer.sam_args.sam_batch_norm != "frozen":
            return nullcontext()
        return statistics_frozen(self.structure.normalisation)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Neither count nor log what other trainers count and log in their passes."""
        before, self.is_aside = self.is_aside, True
        try:
            with uncounted(self._trainer):
                yield
        finally:
            self.is_aside = before

    def _loss_is_scaled(self) -> bool:
        """Return whether Trainer takes the loss as normalised over the window and does not divide it: its own rule."""
        trainer = self._trainer
        if trainer.loss_is_scaled_for_ga is not None:
            return trainer.loss_is_scaled_for_ga
        accepts = trainer.model_accepts_loss_kwargs and self._num_items is not None
        return accepts or trainer.compute_loss_func is not None

    def _tolerance(self) -> float:
        """Return the relative difference that two passes over the same examples can have where a kernel varies."""
        dtypes = {parameter.dtype for parameter in self.structure.names}
        is_low = self._trainer.accelerator.mixed_precision != "no" or dtypes & set(LOW_PRECISION)
        return 3e-2 if is_low else 1e-4

    def _number(self, value: Tensor | float) -> Tensor:
        device = self._trainer.args.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        if isinstance(value, Tensor):
            return value.to(device, dtype)
        return torch.full((), value, dtype=dtype, device=device)  # `torch.tensor` would wait for the device


def _copied(inputs: Any) -> Any:
    """Return inputs that one pass may change in place, as overrides of `compute_loss` do."""
    return recursively_apply(torch.clone, inputs)

"""Runs the passes of an update through the `training_step` of the Trainer below the mixin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from accelerate.utils import recursively_apply
from torch import Tensor, nn

from ..compat import loss_shifts_labels, uncounted
from ..tensors.rounding import LOW_PRECISION
from ..update.gradients import no_broadcast, reshard
from ..update.groups import Piece
from ..update.model_structure import ModelStructure, perturbed_parameters
from ..update.random_state import RandomState
from ..update.runner import PassRunner
from ..update.running_means import RunningMeans
from ..update.running_statistics import evaluation_mode, statistics_held
from .loss_weights import MEAN, NEITHER, SUM, SliceWeights, loss_reduction
from .step_losses import NoBackwardError, loss_of_step, weighted_by


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
        self._chosen: tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]] | None = None
        self._weights = SliceWeights(loss_shifts_labels(trainer))

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
    def stepped(self) -> Sequence[nn.Parameter]:
        return self._choose_parameters()[2]

    @property
    def gradient_state(self) -> Any:
        return self._trainer.accelerator.gradient_state

    def plain_step(self, batch: dict[str, Any]) -> Tensor:
        with self._frozen_statistics():
            return self._training_step(self.model, batch, self._num_items)

    def forward_backward(self, inputs: dict[str, Any], micro_batch: dict[str, Any], counted: bool) -> Tensor:
        trainer = self._trainer
        share = None if inputs is micro_batch else self._weights.share(inputs, micro_batch)
        weighted: AbstractContextManager = nullcontext() if share is None else weighted_by(trainer, share)
        with weighted, nullcontext() if counted else self._aside(), self._frozen_statistics():
            loss = self._training_step(self.model, _copied(inputs), self._num_items)
        if not counted:
            trainer.current_flos += trainer.floating_point_ops(inputs)
        # The mean over a slice without a label is NaN, and weighs 0
        return torch.where(share.to(loss.device) > 0, loss, 0) if isinstance(share, Tensor) else loss

    def advance_random(self, batch: dict[str, Any]) -> None:
        self._loss_without_gradient(batch, self._num_items)

    def examine_loss(self, batch: dict[str, Any], parts: Sequence[dict[str, Any]]) -> None:
        """
        Find out whether the loss is a mean or a sum, once per run, and compare it with those of slices, a few times.

        Random number generators and running statistics stay as they are. All processes take part and get the same
        answer: passes over shards communicate, and perhaps only one process has labels.
        """
        random = RandomState(self.structure.random_devices)
        try:
            if self._weights.reduction is None:
                self._find_reduction(batch, random)
            if self._weights.is_open:
                self._check_slices(batch, parts, random)
            else:
                self._weights.note(batch, parts)
        finally:
            random.restore()

    def at_log(self) -> None:
        """Look at what was noted since the last log. Every process calls this."""
        self._weights.reopen(self._tolerance, self._sum)

    def _find_reduction(self, batch: dict[str, Any], random: RandomState) -> None:
        def loss(num_items: Any) -> Tensor:
            random.restore()
            return self._loss_without_gradient(batch, num_items)

        with statistics_held(self.structure.normalisation):
            answer = loss_reduction(loss, self._num_items, self._tolerance())
        answers = (NEITHER, SUM, MEAN)
        votes = torch.tensor([answer == one for one in answers], dtype=torch.float32, device=self._trainer.args.device)
        found = [one for one, count in zip(answers, self._sum(votes).tolist(), strict=True) if count]
        if found[:1] == [NEITHER]:
            raise self._refusal(
                "that is a mean over the micro-batch, or a sum divided by num_items_in_batch",
                "is neither: with twice the number of items it neither stays the same nor halves",
            )
        self._weights.reduction = found[0] if found else None

    def _check_slices(self, batch: dict[str, Any], parts: Sequence[dict[str, Any]], random: RandomState) -> None:
        losses = self._losses(batch, parts, random) if len(parts) > 1 else []
        values = torch.stack([self._number(loss) for loss in losses or [torch.zeros(())]])
        if not self._weights.check(batch, parts, values, self._tolerance(), self._rounding(), self._sum):
            raise self._refusal(
                "that is a mean over the labels or the examples of a micro-batch, or a sum divided by "
                "num_items_in_batch",
                "is none of these: the losses of slices do not add up to the loss of their micro-batch (as with class "
                "weights, negatives within the batch, a number of boxes, or a term that training_step adds)",
            )

    def _losses(self, batch: dict[str, Any], parts: Sequence[dict[str, Any]], random: RandomState) -> list[Tensor]:
        """
        Return the loss of a micro-batch, the same with the factor 2 on what `compute_loss` returns, and the losses of
        its parts.

        They can be compared only if they draw no random numbers and normalise with the same statistics. Where training
        does otherwise, the model is in evaluation mode.
        """

        def loss(inputs: dict[str, Any]) -> Tensor:
            random.restore()
            return self._loss_without_gradient(inputs, self._num_items)

        with ExitStack() as stack:
            whole = None
            if not self.structure.normalisation or self._trainer.sam_args.sam_batch_norm == "frozen":
                whole = loss(batch)
            if whole is None or random != RandomState(self.structure.random_devices):
                stack.enter_context(evaluation_mode(self.structure.modules))
                whole = self._in_evaluation(lambda: loss(batch), random)
            doubled = 2 * whole
            if not self._weights.is_linear:
                with weighted_by(self._trainer, 2.0):
                    doubled = loss(batch)
            return [whole, doubled, *(loss(part) for part in parts)]

    def _in_evaluation(self, loss: Callable[[], Tensor], random: RandomState) -> Tensor:
        try:
            value = loss()
        except NoBackwardError:
            raise
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise self._refusal(
                "that can be computed in evaluation mode, without dropout and batch statistics, so that the losses of "
                "slices can be compared with the loss of their micro-batch",
                f"cannot ({error})",
            ) from error
        if random != RandomState(self.structure.random_devices):
            raise self._refusal(
                "that draws no random numbers, so that the losses of slices can be compared with the loss of their "
                "micro-batch",
                "draws some, even in evaluation mode",
            )
        return value

    def ascent_share(self, pieces: Sequence[Piece], averaged: bool) -> Tensor:
        """Return the share, and 1 if none of the examples with an ascent pass counts: their gradient is 0 anyway."""

        def weight(inputs: dict[str, Any] | None, piece: Piece) -> Any:
            if not inputs:
                return 0
            share = self._weights.share(inputs, piece.micro_batch)
            return self._weights.items(inputs) if share is None else share

        part = self._number(sum(weight(piece.ascent_inputs, piece) for piece in pieces))
        whole = self._number(sum(weight(piece.inputs, piece) for piece in pieces))
        sums = torch.stack([part, whole])
        part, whole = self._sum(sums) if averaged else sums
        return torch.where(part > 0, part / whole, 1)

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        return self._trainer.accelerator.reduce(tensors, reduction="mean")

    def loss_scale(self) -> Tensor | None:
        scaler = self._trainer.accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return None
        # `get_scale` would wait for the device
        return scaler.scale(torch.ones((), device=self._trainer.args.device))

    def _choose_parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """Return the parameters that can have a gradient, those that are perturbed, and those that are stepped."""
        structure = self.structure
        if self._chosen is None:
            stepped = perturbed_parameters(list(structure.names), self._trainer.optimizer)
            everything = list(dict.fromkeys([*stepped, *structure.names]))
            self._chosen = everything, [p for p in stepped if structure.covers(p)], stepped
        return self._chosen

    def _loss_without_gradient(self, inputs: dict[str, Any], num_items: Any) -> Tensor:
        """Return the loss at the present weights. It draws the random numbers of a plain pass and changes nothing."""

        def step() -> Tensor:
            return self._training_step(self.model, _copied(inputs), num_items)

        with torch.no_grad(), no_broadcast(self.model), self._aside(), self._frozen_statistics():
            try:
                return loss_of_step(self._trainer, step)
            finally:
                reshard(self.structure.modules)

    def _frozen_statistics(self) -> AbstractContextManager:
        if self._trainer.sam_args.sam_batch_norm != "frozen":
            return nullcontext()
        return evaluation_mode(self.structure.normalisation)

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Neither count nor log what other trainers count and log in their passes."""
        before, self.is_aside = self.is_aside, True
        try:
            with uncounted(self._trainer):
                yield
        finally:
            self.is_aside = before

    def _refusal(self, needed: str, but: str) -> ValueError:
        return ValueError(
            f"sam_m below per_device_train_batch_size and sam_ascent_fraction need a loss {needed}. The loss of "
            f"{type(self._trainer).__name__} {but}. Leave sam_ascent_fraction out, and give a sam_m that is a "
            "multiple of per_device_train_batch_size."
        )

    def _rounding(self) -> float:
        """Return the relative error of a few operations in the precision of the passes."""
        low = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self._trainer.accelerator.mixed_precision)
        dtypes = {parameter.dtype for parameter in self.structure.names if parameter.is_floating_point()}
        return 8 * max(torch.finfo(dtype).eps for dtype in dtypes | ({low} if low else set()))

    def _tolerance(self) -> float:
        """Return the relative difference that two passes over the same examples can have where a kernel varies."""
        dtypes = {parameter.dtype for parameter in self.structure.names}
        if self._trainer.accelerator.mixed_precision != "no" or dtypes & set(LOW_PRECISION):
            return 5e-2
        # Accelerators may multiply float32 matrices with the mantissa of TF32
        return 1e-4 if self._trainer.args.device.type == "cpu" else 2e-3

    def _sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all processes."""
        return self._trainer.accelerator.reduce(tensor.to(self._trainer.args.device), reduction="sum")

    def _number(self, value: Tensor | float) -> Tensor:
        device = self._trainer.args.device
        dtype = torch.float32 if device.type == "mps" else torch.float64
        if isinstance(value, Tensor):
            return value.to(device, dtype)
        return torch.full((), value, dtype=dtype, device=device)  # `torch.tensor` would wait for the device


def _copied(inputs: Any) -> Any:
    """Return inputs that one pass may change in place, as overrides of `compute_loss` do."""
    return recursively_apply(torch.clone, inputs)

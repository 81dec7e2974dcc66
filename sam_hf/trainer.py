"""
`SAMMixin`: Sharpness-Aware Minimization over any Trainer. No mathematics here: what a method does is in `methods`, in
which order passes run in `window`; this is where they meet Trainer.

`get_batch_samples` opens a window over the micro-batches of the next update, `training_step` runs the window's passes
through `super().training_step`, `log` adds the metrics. Trainer clips, steps, schedules and saves as ever.
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer
from transformers.utils import logging

from .batch_norm import statistics_frozen, statistics_held
from .checkpoints import last_whole_checkpoint, load_state, save_state
from .counters import uncounted
from .gradients import is_fsdp, no_broadcast
from .layout import Layout
from .loss_share import is_mean, label_share, weighted_by
from .rng import RandomState
from .rounding import StochasticRounding
from .running_means import RunningMeans
from .schedules import radius_at
from .slices import first_dimension
from .support import check_supported
from .targets import perturbed_parameters
from .training_args import check_sam_arguments, method_class, sam_arguments
from .window import Grouping, Passes, Piece, Window

logger = logging.get_logger(__name__)

# Below this share of ε that survives rounding, the user is told: the SAM update is no longer the one they asked for
_ENOUGH_OF_EPSILON = 0.9


if TYPE_CHECKING:  # the mixin stands over any Trainer subclass; the type checker reads it as one of Trainer itself
    _Trainer = Trainer
else:
    _Trainer = object


class SAMMixin(_Trainer):
    """
    Sharpness-Aware Minimization for a Trainer: `class SAMSFTTrainer(SAMMixin, SFTTrainer)`.

    Its arguments are the `sam_*` fields of [`SAMArguments`]; with a `TrainingArguments` that has none, their defaults.
    What a subclass below the mixin does in `training_step` and `compute_loss` is kept: each pass is one call of its
    `training_step`.

    Raises:
        ValueError: the trainer is built, or trained, under something that two passes an update cannot run under
            (DeepSpeed, SageMaker model parallelism, XLA, FSDP1, optimizers that step inside the backward pass).
    """

    _sam_window: Window | None
    _sam_layout: Layout | None
    _sam_means: RunningMeans
    _sam_loss_is_mean: bool | None
    _sam_rounding_checked: bool
    _sam_warned: set[str]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._reset_sam()
        self._refuse_unsupported()

    @property
    def sam_args(self) -> Any:
        """The `sam_*` fields in force: those of `args`, or the defaults if it has none."""
        return sam_arguments(self.args)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        self._reset_sam()
        if resume_from_checkpoint is True:  # none is whole: Trainer says so
            resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir) or True
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        if self._sam_window is not None:
            self._sam_window.abandon()
            self._sam_window = None
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._sam_window = self._open_window(len(batches))
        return batches, num_items_in_batch

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One micro-batch, with every pass that it completes. Returns L(w), the loss of the plain training step."""
        if self._sam_window is None or self._sam_window.is_complete:
            self._sam_window = self._open_window(1)  # a loop of the user's own that calls training_step alone
        frozen = self.sam_args.sam_batch_norm == "frozen"
        with statistics_frozen(self._layout_of(model).normalisation) if frozen else nullcontext():
            if self._sam_window.radius == 0:
                return super().training_step(model, inputs, num_items_in_batch)
            if self._sam_window.grouping.examples is not None and self._sam_loss_is_mean is None:
                self._ask_if_loss_is_mean(model, inputs, num_items_in_batch)
            loss = self._sam_window.step(self._passes(model, num_items_in_batch), inputs)
        if self._sam_window.is_complete and not self._sam_rounding_checked:
            # The one time that the host waits for the device: a run in which SAM does nothing should say so at once
            self._sam_rounding_checked = True
            self._warn_of_rounding(self._sam_window.perturbation_ratio)
        return loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self.is_in_train and "loss" in logs:
            means = self._sam_means.drain(lambda sums: self.accelerator.reduce(sums.clone(), reduction="sum"))
            self._warn_of_rounding(means.get("sam_perturbation_ratio"))
            self._warn_of_skipped(means.get("sam_skipped", 0.0))
            logs.update(means)
        super().log(logs, *args, **kwargs)

    # The three below are private to Trainer. There is no public way: `on_save` comes after the checkpoint was pushed,
    # no event comes with loading, and none with a checkpoint that failed.

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and self.sam_args.sam_method != "none":
            save_state(output_dir, self.sam_args.sam_method, self.args.world_size)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        method = self.sam_args.sam_method
        if checkpoint is None or method == "none":
            return
        try:
            load_state(checkpoint)
        except ValueError as error:
            logger.warning(f"{error}. sam_method={method!r} keeps no state: training resumes without the file.")

    def _save_checkpoint(self, *args, **kwargs) -> None:
        try:
            super()._save_checkpoint(*args, **kwargs)
        except Exception:
            logger.error(
                f"The checkpoint of step {self.state.global_step} in {self.args.output_dir} was not written to its "
                "end (the error below says why). Make room or choose another output_dir, then go on with "
                "train(resume_from_checkpoint=True), which takes the last whole checkpoint."
            )
            raise

    def _reset_sam(self) -> None:
        """What belongs to one training run."""
        self._sam_window = None
        self._sam_layout = None
        self._sam_means = RunningMeans(self.args.device)
        self._sam_loss_is_mean = None
        self._sam_rounding_checked = False
        self._sam_warned = set()

    def _refuse_unsupported(self) -> None:
        if self.sam_args.sam_method != "none":
            check_supported(self)

    def _open_window(self, size: int) -> Window:
        """The window of the next update, from the arguments as they are now: a search may change them between runs."""
        args = self.sam_args
        check_sam_arguments(args)
        self._refuse_unsupported()
        devices = max(1, self.args.n_gpu)
        # Trainer's state and not its arguments: auto_find_batch_size lowers the former only
        micro_batch = (self.state.train_batch_size or self.args.train_batch_size) // devices
        return Window(
            size,
            method=None if args.sam_method == "none" else method_class(args)(p=args.sam_p),
            radius=radius_at(args, self.state.global_step, self.state.max_steps),
            steps=args.sam_ascent_steps,
            grouping=Grouping.of(args.sam_m, micro_batch, devices),
            rounding=self._rounding() if args.sam_stochastic_rounding else None,
        )

    def _layout_of(self, model: nn.Module) -> Layout:
        if self._sam_layout is None or self._sam_layout.model is not model:
            self._sam_layout = Layout(model, self.args.device, self.args.n_gpu)
        return self._sam_layout

    def _passes(self, model: nn.Module, num_items_in_batch: Tensor | int | None) -> Passes:
        args = self.sam_args
        assert self.optimizer is not None
        perturbed = perturbed_parameters(self.optimizer)
        layout = self._layout_of(model)
        return Passes(
            model=model,
            forward_backward=lambda piece, first: self._forward_backward(model, piece, num_items_in_batch, first),
            advance_random=lambda batch: self._loss_without_gradient(model, batch, num_items_in_batch),
            perturbed=perturbed,
            all_parameters=list(dict.fromkeys([*perturbed, *layout.parameters])),
            means=self._sam_means,
            normalisation=layout.normalisation,
            random_devices=layout.random_devices,
            loss_scale=self._loss_scale,
            sync_perturbation=args.sam_sync_perturbation,
            sync_each_batch=self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False),
            replay_random=args.sam_replay_rng,
            hold_statistics=args.sam_batch_norm == "first",
        )

    def _forward_backward(
        self, model: nn.Module, piece: Piece, num_items_in_batch: Tensor | int | None, first: bool
    ) -> Tensor:
        """One forward and backward of the Trainer below, over its own copy of the inputs: overrides pop from them."""
        weighted: AbstractContextManager = nullcontext()
        # Of no labels at all, a mean weighs 0 and a sum is 0: it need not be known yet
        if piece.whole is not None and self._sam_loss_is_mean is not False:
            share = label_share(piece.inputs, piece.whole)
            weighted = weighted_by(self, share, not self._expects_scaled_loss(num_items_in_batch))
        # Trainers count the first pass over each micro-batch, in their metrics as in `current_flos`
        with weighted, nullcontext() if first else uncounted(self):
            loss = super().training_step(model, copy.copy(piece.inputs), num_items_in_batch)
        if not first:
            self.current_flos += self.floating_point_ops(piece.inputs)
        return loss

    def _loss_without_gradient(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> Tensor:
        with torch.no_grad(), no_broadcast(model), uncounted(self), self.compute_loss_context_manager():
            prepared = self._prepare_inputs(copy.copy(inputs))
            loss = self.compute_loss(model, prepared, num_items_in_batch=num_items_in_batch)
        assert isinstance(loss, Tensor)  # not a pair: outputs were not asked for
        return loss

    def _expects_scaled_loss(self, num_items_in_batch: Tensor | int | None) -> bool:
        """Whether Trainer takes the loss as normalised over the window, and does not divide it (its own rule)."""
        if self.loss_is_scaled_for_ga is not None:
            return self.loss_is_scaled_for_ga
        return (self.model_accepts_loss_kwargs and num_items_in_batch is not None) or (
            self.compute_loss_func is not None
        )

    def _ask_if_loss_is_mean(self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Any) -> None:
        """
        Asked once a run, of the first micro-batch with labels; leaves generators and running statistics alone.

        All processes ask and answer together: passes over shards communicate, and the labels may be on one of them.
        """
        first_dimension(inputs)  # inputs that cannot be cut are refused before the model sees them
        model.train()
        layout = self._layout_of(model)
        random = RandomState(layout.random_devices)

        def loss(num_items: Any) -> Tensor:
            random.restore()
            return self._loss_without_gradient(model, inputs, num_items)

        with statistics_held(layout.normalisation):
            answer = is_mean(loss, num_items_in_batch)
        random.restore()
        votes = torch.tensor([answer is True, answer is False], dtype=torch.float32, device=self.args.device)
        means, sums = self.accelerator.reduce(votes, reduction="sum").tolist()
        if means or sums:
            self._sam_loss_is_mean = not sums

    def _loss_scale(self) -> Tensor | None:
        scaler = self.accelerator.scaler
        if scaler is None or not scaler.is_enabled():
            return None
        # `get_scale` would wait for the device
        return scaler.scale(torch.ones((), device=self.args.device))

    def _rounding(self) -> StochasticRounding:
        shared = self.sam_args.sam_sync_perturbation or is_fsdp(self.model_wrapped)
        rank = () if shared else (self.args.process_index,)
        return StochasticRounding((self.args.seed, self.state.global_step, *rank))

    def _warn_of_rounding(self, ratio: Tensor | float | None) -> None:
        # Stochastic rounding is unbiased: what one update keeps scatters around 1, and says nothing
        if ratio is None or self.sam_args.sam_stochastic_rounding or float(ratio) >= _ENOUGH_OF_EPSILON:
            return
        self._warn_once(
            "rounding",
            f"Only {float(ratio):.0%} of the SAM perturbation survives rounding to the precision of the weights. Set "
            "sam_stochastic_rounding=True, use a larger sam_rho, or keep the weights in float32 and train with "
            "bf16=True.",
        )

    def _warn_of_skipped(self, share: float) -> None:
        if share == 0 or self._loss_scale() is not None:  # fp16's scaler finds its scale by overflows
            return
        self._warn_once(
            "skipped",
            f"{share:.0%} of the ascent gradients since the last log were NaN or infinite. Those updates had no SAM "
            "perturbation. Look for such values in the data, or lower the learning rate.",
        )

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._sam_warned:
            self._sam_warned.add(about)
            logger.warning(message)


class SAMTrainer(SAMMixin, Trainer):
    """[`~transformers.Trainer`] with Sharpness-Aware Minimization. See [`SAMMixin`] and [`SAMArguments`]."""


class SAMSeq2SeqTrainer(SAMMixin, Seq2SeqTrainer):
    """[`~transformers.Seq2SeqTrainer`] with Sharpness-Aware Minimization. See [`SAMMixin`] and [`SAMArguments`]."""

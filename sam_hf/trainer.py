"""
`SAMMixin`: Sharpness-Aware Minimization over any Trainer. No mathematics here: what a method does is in `methods`, in
which order passes run in `window`; this is where they meet Trainer.

`get_batch_samples` opens a window over the micro-batches of the next update, `training_step` runs the window's passes
through `super().training_step`, `log` adds the metrics. Trainer clips, steps, schedules and saves as ever.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer

from .advice import Advice
from .batch_norm import statistics_frozen
from .checkpoint_mixin import CheckpointMixin
from .gradients import is_fsdp
from .layout import Layout
from .passes import Grouping, Passes
from .rounding import StochasticRounding
from .running_means import RunningMeans
from .schedules import radius_at
from .support import check_supported
from .targets import perturbed_parameters
from .trainer_pass import TrainerPass
from .training_args import check_sam_arguments, method_class, sam_arguments
from .window import Window


class SAMMixin(CheckpointMixin):
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
    _sam_window_opened_at: int
    _sam_means: RunningMeans
    _sam_pass: TrainerPass
    _sam_advice: Advice
    _sam_rounding_checked: bool

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._reset_sam()
        self._refuse_unsupported()

    @property
    def sam_args(self) -> Any:
        """The `sam_*` fields in force: those of `args`, or the defaults if it has none."""
        return sam_arguments(self.args)

    def train(self, *args, **kwargs):
        self._reset_sam()
        return super().train(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._close_window()
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._sam_window = self._open_window(len(batches))
        self._sam_window_opened_at = self.state.global_step
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
            if self._sam_window.grouping.examples is not None:
                self._sam_pass.ask_if_loss_is_mean(self._layout_of(model), inputs, num_items_in_batch)
            loss = self._sam_window.step(self._passes(model, num_items_in_batch), inputs)
        if self._sam_window.is_complete and not self._sam_rounding_checked:
            # The one time that the host waits for the device: a run in which SAM does nothing should say so at once
            self._sam_rounding_checked = True
            self._sam_advice.on_rounding(self._sam_window.perturbation_ratio, self.sam_args.sam_stochastic_rounding)
        return loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self.is_in_train and "loss" in logs:
            means = self._sam_means.drain(lambda sums: self.accelerator.reduce(sums.clone(), reduction="sum"))
            self._sam_advice.on_rounding(means.get("sam_perturbation_ratio"), self.sam_args.sam_stochastic_rounding)
            self._sam_advice.on_skipped(means.get("sam_skipped", 0.0), self._sam_pass.loss_scale() is not None)
            logs.update(means)
        super().log(logs, *args, **kwargs)

    def _reset_sam(self) -> None:
        """What belongs to one training run."""
        self._sam_window = None
        self._sam_layout = None
        self._sam_window_opened_at = 0
        self._sam_means = RunningMeans(self.args.device)
        self._sam_pass = TrainerPass(self, super().training_step)
        self._sam_advice = Advice()
        self._sam_rounding_checked = False

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

    def _close_window(self) -> None:
        """Before the next window is opened: see to what is left of one that did not get all of its micro-batches."""
        window, self._sam_window = self._sam_window, None
        if window is None or window.is_complete or window.radius == 0:
            return
        if self.state.global_step == self._sam_window_opened_at:  # broken off by a callback: there was no step
            window.abandon()
            return
        self._sam_advice.on_bypass(type(self).__name__)

    def _passes(self, model: nn.Module, num_items_in_batch: Tensor | int | None) -> Passes:
        args = self.sam_args
        layout, run = self._layout_of(model), self._sam_pass
        perturbed = perturbed_parameters(layout.parameters, self.optimizer)
        return Passes(
            model=model,
            forward_backward=lambda piece, first: run.forward_backward(model, piece, num_items_in_batch, first),
            advance_random=lambda batch: run.loss_without_gradient(model, batch, num_items_in_batch),
            perturbed=perturbed,
            all_parameters=list(dict.fromkeys([*perturbed, *layout.parameters])),
            means=self._sam_means,
            normalisation=layout.normalisation,
            random_devices=layout.random_devices,
            loss_scale=run.loss_scale,
            sync_perturbation=args.sam_sync_perturbation,
            sync_each_batch=self.accelerator.gradient_state.plugin_kwargs.get("sync_each_batch", False),
            replay_random=args.sam_replay_rng,
            hold_statistics=args.sam_batch_norm == "first",
        )

    def _rounding(self) -> StochasticRounding:
        shared = self.sam_args.sam_sync_perturbation or is_fsdp(self.model_wrapped)
        rank = () if shared else (self.args.process_index,)
        return StochasticRounding((self.args.seed, self.state.global_step, *rank))


class SAMTrainer(SAMMixin, Trainer):
    """[`~transformers.Trainer`] with Sharpness-Aware Minimization. See [`SAMMixin`] and [`SAMArguments`]."""


class SAMSeq2SeqTrainer(SAMMixin, Seq2SeqTrainer):
    """[`~transformers.Seq2SeqTrainer`] with Sharpness-Aware Minimization. See [`SAMMixin`] and [`SAMArguments`]."""

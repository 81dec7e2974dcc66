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

from ..arguments.checks import check_sam_arguments
from ..arguments.fields import sam_arguments
from ..arguments.schedules import UpdateKind, progress_at, radius_at, update_kind_at
from ..hub.mixin import HubMixin
from ..sharpness.callback import add_sharpness
from ..tensors.rounding import StochasticRounding
from ..update.ascent_window import Window
from ..update.combining import reuse
from ..update.gradients import is_fsdp
from ..update.groups import GroupSize
from ..update.model_structure import ModelStructure
from ..update.perturbed_parameters import perturbed_parameters
from ..update.runner import Passes
from ..update.running_means import RunningMeans
from ..update.running_statistics import statistics_frozen
from ..update.window import MomentumWindow, PlainWindow
from .checkpoint_mixin import CheckpointMixin
from .method_lifecycle import MethodLifecycle
from .refusals import check_supported
from .run_warnings import RunWarnings
from .runner import TrainerPass


class SAMMixin(HubMixin, CheckpointMixin):
    """
    Sharpness-Aware Minimization for a Trainer: `class SAMSFTTrainer(SAMMixin, SFTTrainer)`.

    Its arguments are the `sam_*` fields of [`SAMArguments`]; with a `TrainingArguments` that has none, their defaults.
    What a subclass below the mixin does in `training_step` and `compute_loss` is kept: each pass is one call of its
    `training_step`. What it logs there is logged once, of the pass at w.

    Raises:
        ValueError: the trainer is built, or trained, under something that two passes an update cannot run under
            (DeepSpeed, SageMaker model parallelism, XLA, FSDP1, optimizers that step inside the backward pass).
        HubError: the trainer is built with `push_to_hub`, and could not push.
    """

    _sam_window: Window | MomentumWindow | PlainWindow | None
    _sam_layout: ModelStructure | None
    _sam_window_opened_at: int
    _sam_flops: dict[int, tuple[dict[str, Any], int]]  # of this window's inputs, by identity
    _sam_means: RunningMeans
    _sam_pass: TrainerPass
    _sam_advice: RunWarnings
    _sam_rounding_checked: bool

    def __init__(self, *args, **kwargs):
        self._sam_runner = MethodLifecycle()
        self.model_card_facts = {}
        self._sam_pushes = []
        super().__init__(*args, **kwargs)
        self._remember_local_names()
        self._reset_sam()
        self._refuse_unsupported()
        add_sharpness(self, self.sam_args)

    @property
    def sam_args(self) -> Any:
        """The `sam_*` fields in force: those of `args`, or the defaults if it has none."""
        return sam_arguments(self.args)

    def train(self, *args, **kwargs):
        self._reset_sam()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._sam_runner.release()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._close_window()
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._sam_window = self._open_window(batches)
        self._sam_window_opened_at = self.state.global_step
        return batches, num_items_in_batch

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """One micro-batch, with every pass that it completes. Returns L(w), the loss of the plain training step."""
        window = self._sam_window
        if window is None or window.is_complete:  # a loop of the user's own that calls training_step alone
            window = self._sam_window = self._open_window([inputs])
        frozen = self.sam_args.sam_batch_norm == "frozen"
        with statistics_frozen(self._layout_of(model).normalisation) if frozen else nullcontext():
            if isinstance(window, PlainWindow):
                loss = super().training_step(model, inputs, num_items_in_batch)
                if window.count() and window.method is not None:
                    reuse(window.method, self._passes(model, num_items_in_batch))
                return loss
            if window.slices_batches:
                self._sam_pass.ask_if_loss_is_mean(self._layout_of(model), inputs, num_items_in_batch)
            try:
                loss = window.step(self._passes(model, num_items_in_batch), inputs)
            except BaseException:
                self._sam_window = None  # auto_find_batch_size starts again: no gradient of this attempt is left to it
                raise
        if window.is_complete and not self._sam_rounding_checked:
            # The one time that the host waits for the device: a run in which SAM does nothing should say so at once
            self._sam_rounding_checked = True
            self._sam_advice.on_rounding(window.perturbation_ratio, self.sam_args.sam_stochastic_rounding)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's estimate for one pass. It walks the model, so once a micro-batch, however many passes see it."""
        known = self._sam_flops.get(id(inputs))
        if known is None or known[0] is not inputs:
            known = self._sam_flops[id(inputs)] = (inputs, super().floating_point_ops(inputs))
        return known[1]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self._sam_pass.unlogged:
            return
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
        self._sam_flops = {}
        self._sam_means = RunningMeans(self.args.device)
        self._sam_pass = TrainerPass(self, super().training_step)
        self._sam_advice = RunWarnings()
        self._sam_rounding_checked = False
        self._sam_runner.reset()

    def _refuse_unsupported(self) -> None:
        if self.sam_args.sam_method != "none":
            check_supported(self)

    def _open_window(self, batches: list[dict[str, Any]]) -> Window | MomentumWindow | PlainWindow:
        """The window of the next update, from the arguments as they are now: a search may change them between runs."""
        args = self.sam_args
        check_sam_arguments(args)
        self._refuse_unsupported()
        if args.sam_method == "none":
            return PlainWindow(batches)
        update, total = self.state.global_step, self.state.max_steps
        turn = update_kind_at(args, update, total)
        method = self._sam_runner.method(args, self.model, self.optimizer)
        method.begin_update(turn is UpdateKind.SAM, progress_at(update, total))
        step = self._sam_runner.step_length
        radius = radius_at(args, update, total, self.optimizer, None if step is None else step.value)
        if turn is UpdateKind.BETWEEN and method.reuses and method.tensors:
            return PlainWindow(batches, method)
        if turn is not UpdateKind.SAM or (
            not isinstance(radius, Tensor) and radius == 0
        ):  # comparing a tensor would wait
            return PlainWindow(batches)
        rounding = self._rounding() if args.sam_stochastic_rounding else None
        if method.perturbs_by_momentum:
            return MomentumWindow(batches, method=method, radius=radius, optimizer=self.optimizer, rounding=rounding)
        devices = max(1, self.args.n_gpu)
        # What batches are loaded with: auto_find_batch_size lowers it and not the arguments, and the state of a
        # resumed run has the size of the run before
        micro_batch = self._train_batch_size // devices
        return Window(
            batches,
            method=method,
            radius=radius,
            steps=args.sam_ascent_steps,
            grouping=GroupSize.of(args.sam_m, micro_batch, devices),
            fraction=args.sam_ascent_fraction,
            rounding=rounding,
        )

    def _close_window(self) -> None:
        """Before the next window is opened: see to what is left of one that did not get all of its micro-batches."""
        window, self._sam_window = self._sam_window, None
        self._sam_flops.clear()
        if window is None or window.is_complete or isinstance(window, PlainWindow):
            return
        if self.state.global_step == self._sam_window_opened_at:  # broken off by a callback: there was no step
            window.abandon()
            return
        self._sam_advice.on_bypass(type(self).__name__)

    def _layout_of(self, model: nn.Module) -> ModelStructure:
        layout, targets = self._sam_layout, self.sam_args.sam_target_modules
        if layout is None or layout.model is not model or layout.targets != targets:
            layout = self._sam_layout = ModelStructure(model, self.args.device, targets, self.args.n_gpu)
        return layout

    def _passes(self, model: nn.Module, num_items_in_batch: Tensor | int | None) -> Passes:
        args = self.sam_args
        layout, run = self._layout_of(model), self._sam_pass
        stepped = perturbed_parameters(list(layout.names), self.optimizer)
        return Passes(
            model=model,
            forward_backward=lambda inputs, of, counted: run.forward_backward(
                model, inputs, of, num_items_in_batch, counted
            ),
            advance_random=lambda batch: run.loss_without_gradient(model, batch, num_items_in_batch),
            ascent_share=run.ascent_share,
            perturbed=[p for p in stepped if layout.covers(p)],
            all_parameters=list(dict.fromkeys([*stepped, *layout.names])),
            own_name=layout.own_name,
            average=lambda tensors: self.accelerator.reduce(tensors, reduction="mean"),
            # Reentrant checkpointing makes gradients only inside layers whose inputs have one
            skip_unperturbed=bool(layout.left_out) and not layout.checkpoints_reentrantly,
            means=self._sam_means,
            normalisation=layout.normalisation,
            random_devices=layout.random_devices,
            loss_scale=run.loss_scale,
            gradient_state=self.accelerator.gradient_state,
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

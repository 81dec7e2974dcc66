"""
`SAMMixin`: Sharpness-Aware Minimization over any Trainer. It contains no mathematics: `methods` defines what a method
does, `update` the order of the passes, and this file connects both to Trainer.

`get_batch_samples` opens a window over the micro-batches of the next update. `training_step` hands each micro-batch to
the window, which runs its passes through `super().training_step`. `log` adds the metrics. Trainer clips, steps,
schedules and saves as usual.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Seq2SeqTrainer, Trainer

from ..arguments.checks import check_sam_arguments
from ..arguments.fields import SAMArguments, sam_arguments
from ..arguments.schedules import UpdateKind, method_class, progress_at, radius_at, update_kind_at
from ..hub.mixin import HubMixin
from ..sharpness.callback import add_sharpness
from ..tensors.rounding import StochasticRounding
from ..update.ascent_window import AscentWindow
from ..update.gradients import is_fsdp
from ..update.groups import GroupSize
from ..update.window import MomentumWindow, PlainWindow, Window
from .checkpoints import CheckpointMixin
from .method_lifecycle import MethodLifecycle
from .refusals import check_supported
from .run_warnings import RunWarnings
from .runner import TrainerRunner


class SAMMixin(HubMixin, CheckpointMixin):
    """
    Sharpness-Aware Minimization for a Trainer: `class SAMSFTTrainer(SAMMixin, SFTTrainer)`.

    Its arguments are the `sam_*` fields of [`SAMArguments`]. With a `TrainingArguments` that has no such fields, their
    defaults apply. Overrides of `training_step` and `compute_loss` in the trainer below the mixin keep working: each
    pass is one call of its `training_step`. What that trainer logs is logged once, for the pass at w.

    Raises:
        ValueError: the trainer is built or trained with something that does not allow two passes per update
            (DeepSpeed, SageMaker model parallelism, XLA, FSDP1, optimizers that step inside the backward pass).
        HubError: the trainer is built with `push_to_hub`, and cannot push.
    """

    _sam_default_args: SAMArguments | None = None
    _sam_window: Window | None
    _sam_window_opened_at: int | None  # the number of updates before it; `None` before the first window
    _sam_flops: dict[int, tuple[dict[str, Any], int]]  # for the inputs of this window, by identity
    _sam_metrics: dict[str, float]  # gathered over processes, for the next log
    _sam_runner: TrainerRunner
    _sam_warnings: RunWarnings

    def __init__(self, *args, **kwargs):
        self._sam_method = MethodLifecycle()
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
        if isinstance(self.args, SAMArguments):
            return self.args
        if self._sam_default_args is None:  # kept, so that an assignment to one of its fields is not lost
            self._sam_default_args = sam_arguments(self.args)
        return self._sam_default_args

    def train(self, *args, **kwargs):
        self._reset_sam()
        try:
            return super().train(*args, **kwargs)
        finally:
            self._sam_method.release()

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        self._close_window()
        self._check_last_step()
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
        """Run every pass that this micro-batch completes. Return L(w), the loss of the plain training step."""
        window = self._sam_window
        if window is None or window.is_complete:  # a training loop of the user's own calls `training_step` directly
            window = self._sam_window = self._open_window([inputs])
        self._sam_runner.prepare(model, num_items_in_batch)
        try:
            loss = window.step(self._sam_runner, inputs)
        except BaseException:
            # auto_find_batch_size starts again, and must not find gradients or metrics of this attempt
            self._sam_window = None
            self._sam_runner.means.clear()
            raise
        if window.is_complete:
            self._sam_warnings.on_first_ratio(window.perturbation_ratio, self.sam_args.sam_stochastic_rounding)
        return loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return Trainer's estimate for one pass. It walks the model, so it is computed once per micro-batch."""
        known = self._sam_flops.get(id(inputs))
        if known is None or known[0] is not inputs:
            known = self._sam_flops[id(inputs)] = (inputs, super().floating_point_ops(inputs))
        return known[1]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if self._sam_runner.is_aside:
            return
        if self.is_in_train and "loss" in logs:
            metrics, self._sam_metrics = self._sam_metrics, {}
            logs.update(metrics)
        super().log(logs, *args, **kwargs)

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        """
        Gather the metrics over processes where Trainer gathers its own loss.

        `log` would be the public place. But a callback may call it on one rank only, and this rank would then wait for
        the others.
        """
        if self.control.should_log:
            self._sam_runner.at_log()
            metrics = self._sam_runner.means.drain(lambda sums: self.accelerator.reduce(sums.clone(), reduction="sum"))
            stochastic, is_scaled = self.sam_args.sam_stochastic_rounding, self._sam_runner.loss_scale() is not None
            self._sam_warnings.on_rounding(metrics.get("sam_perturbation_ratio"), stochastic)
            self._sam_warnings.on_skipped(metrics.get("sam_skipped", 0.0), is_scaled)
            self._sam_metrics |= metrics
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _reset_sam(self) -> None:
        """Forget everything that belongs to one training run."""
        self._sam_window = None
        self._sam_window_opened_at = None
        self._sam_flops = {}
        self._sam_metrics = {}
        self._sam_runner = TrainerRunner(self, super().training_step)
        self._sam_warnings = RunWarnings()
        self._sam_method.reset()

    def _refuse_unsupported(self) -> None:
        if self.sam_args.sam_method != "none":
            check_supported(self)

    def _open_window(self, batches: list[dict[str, Any]]) -> Window:
        """Make the window of the next update from the present arguments: a search may change them between runs."""
        args = self.sam_args
        check_sam_arguments(args)
        self._refuse_unsupported()
        self._sam_flops.clear()
        self._sam_runner.begin_update()
        if args.sam_method == "none":
            return PlainWindow(batches)
        reports = _reports_of_plain_updates(args)
        update, total = self.state.global_step, self.state.max_steps
        kind = update_kind_at(args, update, total)
        method = self._sam_method.method(args, self.model, self.optimizer)
        self._sam_method.begin_update()
        method.begin_update(kind is UpdateKind.SAM, progress_at(update, total))
        step = self._sam_method.step_length
        radius = radius_at(args, update, total, self.optimizer, None if step is None else step.value)
        if kind is UpdateKind.BETWEEN and method.reuses and method.tensors:
            return PlainWindow(batches, method, reports)
        is_zero = not isinstance(radius, Tensor) and radius == 0  # comparing a tensor would wait for the device
        if kind is not UpdateKind.SAM or is_zero:
            return PlainWindow(batches, reports=reports)
        rounding = self._rounding() if args.sam_stochastic_rounding else None
        if method.perturbs_by_momentum:
            return MomentumWindow(
                batches,
                method=method,
                radius=radius,
                optimizer=self.optimizer,
                has_stepped=self._sam_method.has_stepped,
                rounding=rounding,
            )
        devices = max(1, self.args.n_gpu)
        # The size that batches are loaded with: auto_find_batch_size lowers it without changing the arguments, and the
        # state of a resumed run has the size of the earlier run
        micro_batch = self._train_batch_size // devices
        return AscentWindow(
            batches,
            method=method,
            radius=radius,
            steps=args.sam_ascent_steps,
            group_size=GroupSize.of(args.sam_m, micro_batch, devices),
            fraction=args.sam_ascent_fraction,
            rounding=rounding,
            sync_perturbation=args.sam_sync_perturbation,
            replay_random=args.sam_replay_rng,
            hold_statistics=args.sam_batch_norm == "first",
        )

    def _check_last_step(self) -> None:
        """Check, where Trainer has counted another update, that the optimizer's step was seen."""
        before = self._sam_window_opened_at
        if before is None or self.state.global_step <= before or self.accelerator.optimizer_step_was_skipped:
            return
        self._sam_method.check_stepped(self.optimizer)

    def _close_window(self) -> None:
        """Handle a window that did not get all of its micro-batches, before the next one is opened."""
        window, self._sam_window = self._sam_window, None
        self._sam_flops.clear()
        if window is None or not window.is_cut_short:
            return
        if self.state.global_step == self._sam_window_opened_at:  # a callback broke the update off; there was no step
            window.abandon()
            return
        self._sam_warnings.on_bypass(type(self).__name__)

    def _rounding(self) -> StochasticRounding:
        is_shared = self.sam_args.sam_sync_perturbation or is_fsdp(self.model_wrapped)
        rank = () if is_shared else (self.args.process_index,)
        return StochasticRounding((self.args.seed, self.state.global_step, *rank))


def _reports_of_plain_updates(args: Any) -> list[str]:
    """
    Return the metrics to which a plain update of the run adds its own: those of ε = 0.

    So they are means over the same updates as `loss`.
    """
    method = method_class(args)
    if not method.perturbs or args.sam_rho == 0:
        return []
    has_both_losses = not method.perturbs_by_momentum and args.sam_ascent_fraction == 1
    return ["sam_rho", "sam_perturbed_loss", *(["sam_sharpness"] if has_both_losses else [])]


class SAMTrainer(SAMMixin, Trainer):
    """[`~transformers.Trainer`] with Sharpness-Aware Minimization. See [`SAMMixin`] and [`SAMArguments`]."""


class SAMSeq2SeqTrainer(SAMMixin, Seq2SeqTrainer):
    """[`~transformers.Seq2SeqTrainer`] with Sharpness-Aware Minimization. See [`SAMMixin`] and [`SAMArguments`]."""

"""The training of a run: anew, resumed, or already done by an earlier run in the same folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.trainer_callback import TrainerState

from ..errors import DivergedError
from ..inputs.checkpoint_files import WEIGHTS
from ..trainer.checkpoints import last_whole_checkpoint
from ..trainer.replacing import replaced
from .non_finite import DivergenceWatch, count_non_finite
from .resuming import Start, check_length, say
from .run_record import RunRecord
from .summary import LabelNoise

_ADVICE = "Try a smaller learning_rate (it is {rate:g}){precision}, or look at the data"


class Training:
    """
    Trains, and writes the model and the results of training to `output_dir`.

    Args:
        trainer ([`SAMMixin`]): the trainer, already built.
        start (`Start`): what the run starts from.
        save_model (`bool`): write the weights.
        noise (`LabelNoise`, *optional*): noise on the training labels.

    Attributes:
        has_trained: updates were made.
        is_new: something was written that was not there.
        written: what was written, as a sentence without a full stop.
    """

    def __init__(self, trainer: Any, start: Start, save_model: bool, noise: LabelNoise | None):
        self._trainer, self._args = trainer, trainer.args
        self._start, self._save_model, self._noise = start, save_model, noise
        self._record = RunRecord(start.record.options, start.record.run)
        self.has_trained, self.is_new, self.written = False, False, "no model was written"

    def run(self) -> None:
        """
        Train, or load what was trained if nothing is left to do.

        Raises:
            DivergedError: the loss or the weights are NaN or infinite at the end.
            UsageError: the checkpoint was trained for longer than this run asks for.
        """
        trainer, checkpoint = self._trainer, self._start.resume_from
        trainer.run_record = self._record.as_json()
        if checkpoint is None:
            if trainer.is_world_process_zero():
                self._record.write(self._args.output_dir)  # from now on, other checkpoints there are of an earlier run
        else:
            state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
            total = self._total(state)
            check_length(self._start, state, total)
            say(self._args, self._start.line(state, total))
            if state.global_step == total:
                return self._load_what_was_trained(checkpoint)
        self._train(checkpoint)

    def complete(self) -> None:
        """Note that everything is written, so that the same command leaves it alone."""
        if self.is_new and self._trainer.is_world_process_zero():
            self._record.complete = True
            self._record.write(self._args.output_dir)

    def _total(self, state: TrainerState) -> int:
        """Return the number of updates that this run asks for."""
        args, trainer = self._args, self._trainer
        if args.max_steps > 0:
            return args.max_steps
        if args.auto_find_batch_size and state.epoch:  # then the checkpoint has the size of a batch
            return math.ceil(args.num_train_epochs * round(state.global_step / state.epoch))
        return trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]

    def _train(self, checkpoint: str | None) -> None:
        trainer, watch = self._trainer, DivergenceWatch(self._trainer)
        for callback in (LogLastStep(), watch, KeepRecord(self._record)):
            trainer.add_callback(callback)
        with watch.over_losses():
            output = trainer.train(resume_from_checkpoint=checkpoint)
        self.has_trained = True
        is_bad = count_non_finite(trainer) > 0
        error = self._divergence(watch, is_bad)
        has_best = self._args.load_best_model_at_end and trainer.state.best_model_checkpoint is not None
        metrics = output.metrics
        if error is not None and (is_bad or not has_best):
            self._write_log({**metrics, "train_loss": math.nan})  # the log filter has left NaN out of this mean
            raise error
        if self._noise is not None:
            metrics |= {"train_label_noise": self._noise.share, "train_labels_replaced": self._noise.replaced}
        self._write(metrics)
        if error is not None:
            raise error

    def _write_log(self, metrics: dict[str, float]) -> None:
        """Write the results and the state of a run without a model, unless they would take the place of a model's."""
        if not any((Path(self._args.output_dir) / name).exists() for name in WEIGHTS):
            record(self._trainer, "train", metrics)
            self._trainer.save_state()

    def _load_what_was_trained(self, checkpoint: str) -> None:
        """Load the weights of the checkpoint, or the best ones, and the state. Trainer has no epoch left to run."""
        trainer = self._trainer
        set_values = trainer.set_initial_training_values
        # In the middle of an epoch, Trainer would make one more update
        without_epochs = {"set_initial_training_values": lambda *a, **k: (0, *set_values(*a, **k)[1:])}
        eval_on_start, self._args.eval_on_start = self._args.eval_on_start, False
        with replaced(trainer, **without_epochs, log=lambda *args, **kwargs: None):
            trainer.train(resume_from_checkpoint=checkpoint)
        self._args.eval_on_start = eval_on_start
        trainer.state.num_train_epochs = set_values(self._args, trainer.get_train_dataloader())[0]
        earlier = RunRecord.read(self._args.output_dir)
        output = Path(self._args.output_dir)
        is_complete = (output / "train_results.json").is_file() if earlier is None else earlier.complete
        if is_complete:
            self.written = f"nothing was left to train: model and results in {output} are as they were"
            return
        # The run was stopped after its last checkpoint
        self._write(None)

    def _write(self, metrics: dict[str, float] | None) -> None:
        """Write the model, the results of training if they are known, and the state."""
        trainer = self._trainer
        self.is_new = True
        if self._save_model:
            trainer.save_model(_internal_call=True)  # without a push
            self.written = f"model written to {self._args.output_dir}"
        if metrics is not None:
            record(trainer, "train", metrics)
        if self._save_model and hasattr(trainer.model, "peft_config") and self._args.should_save:
            # The adapters' files hold no label names, and evaluation needs these
            trainer.model.config.save_pretrained(self._args.output_dir)
        trainer.save_state()

    def _divergence(self, watch: DivergenceWatch, is_bad: bool) -> DivergedError | None:
        """Return what to say if the run diverged, where `is_bad` says that the present weights are not finite."""
        trainer, args = self._trainer, self._args
        since, state = watch.since(), trainer.state
        best = state.best_model_checkpoint if args.load_best_model_at_end else None
        if not (since or is_bad or watch.stopped_at):
            evaluations = [entry for entry in state.log_history if "eval_loss" in entry]
            if not args.load_best_model_at_end or best is not None or not evaluations:
                return None
            what = f"no evaluation has a finite {args.metric_for_best_model}, so there is no best model"
        else:
            loss = f"the loss is NaN or infinite since update {since} of {state.max_steps}"
            weights = f"the weights are NaN or infinite after update {watch.stopped_at or state.global_step}"
            what = " and ".join([*([loss] if since else []), *([weights] if is_bad or watch.stopped_at else [])])
        if best is not None:
            kept = f"The best model, that of {best}, was written to {args.output_dir}"
        else:
            last = last_whole_checkpoint(args.output_dir, self._is_own)
            kept = f"No model was written to {args.output_dir}{f', and its last checkpoint is {last}' if last else ''}"
        precision = " or bf16 instead of fp16" if args.fp16 else ""
        return DivergedError(f"{what}. {kept}. {_ADVICE.format(rate=args.learning_rate, precision=precision)}.")

    def _is_own(self, checkpoint: Path) -> bool:
        trained = RunRecord.read(checkpoint)
        return trained is not None and trained.run == self._record.run


class LogLastStep(TrainerCallback):
    """Logs the last step, so that a run that is shorter than `logging_steps` reports its losses too."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps


class KeepRecord(TrainerCallback):
    """Writes the record of the run to `output_dir` with each checkpoint, which has it too."""

    def __init__(self, record: RunRecord):
        self._record = record

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self._record.write(args.output_dir)


def record(trainer: Any, split: str, metrics: dict[str, float]) -> None:
    """Print the results of a split and write them to `output_dir`."""
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)

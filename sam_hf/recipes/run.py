"""Training, evaluation, prediction and the report: the part of a run that all programs share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax
from transformers import TrainerCallback

from ..errors import UsageError
from ..inputs.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..metrics import load_metric

if TYPE_CHECKING:
    from ..inputs.labels import LabelScheme


def metrics_function(problem_type: str) -> Callable[[Any], dict[str, float]]:
    """A `compute_metrics` for Trainer over the metrics that this package carries."""
    metric = load_metric({REGRESSION: "regression", MULTI_LABEL: "multi_label"}.get(problem_type, "classification"))

    def compute_metrics(prediction: Any) -> dict[str, float]:
        scores = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
        references = prediction.label_ids
        if problem_type == REGRESSION:
            outputs = scores.reshape(len(scores))
        elif problem_type == MULTI_LABEL:
            # A probability above one half is a logit above zero
            outputs, references = (scores > 0).astype(int), references.astype(int)
        else:
            outputs = scores.argmax(-1)
        return metric.compute(predictions=outputs, references=references)

    return compute_metrics


def find_checkpoint(args: Any, overwrite: bool) -> str | None:
    """The checkpoint to go on from: the one named, else `output_dir`'s last whole one unless overwritten."""
    from ..trainer.checkpoint_files import last_whole_checkpoint

    if args.resume_from_checkpoint:
        if not Path(args.resume_from_checkpoint).is_dir():
            raise UsageError(f"resume_from_checkpoint={args.resume_from_checkpoint} does not exist")
        return args.resume_from_checkpoint
    if Path(args.output_dir).is_file():
        raise UsageError(f"output_dir={args.output_dir} is a file: it must be a folder")
    if overwrite or not Path(args.output_dir).is_dir():
        return None
    return last_whole_checkpoint(args.output_dir)


def carry_out(
    trainer: Any,
    checkpoint: str | None,
    card: dict[str, Any],
    predict_dataset: Any = None,
    write_predictions: Callable[[Path, Any], None] | None = None,
    noise: float | None = None,
    replaced: int = 0,
    save_model: bool = True,
) -> None:
    """
    Train, evaluate and predict as `trainer.args` ask, write the results and the model card, print a summary, push.

    Args:
        checkpoint (`str`, *optional*): what training goes on from, see `find_checkpoint`.
        card (`dict`): arguments of the model card, see `card_arguments`.
        predict_dataset (`Dataset`, *optional*): examples to predict.
        write_predictions (`Callable[[Path, Any], None]`, *optional*): writes what was predicted to a file.
        noise (`float`, *optional*): share of the training labels that noise replaced; `None` where none can be.
        replaced (`int`, *optional*, defaults to `0`): how many labels these are.
        save_model (`bool`, *optional*, defaults to `True`): write the weights, and the card with them.
    """
    args = trainer.args
    by_hand = _is_by_hand(Path(args.output_dir) / "README.md")  # before peft and TRL write theirs
    if noise:
        share = f"{noise:.0%} of the training labels replaced by another class ({replaced} labels)"
        trainer.model_card_facts["label noise"] = share
    try:
        _carry_out(trainer, checkpoint, predict_dataset, write_predictions, noise, replaced, save_model)
        # Last: all there is to push is written by now, and nothing is lost where the Hub fails
        if args.push_to_hub:
            trainer.push_to_hub(**card)
        elif args.do_train and save_model and not by_hand:
            trainer.create_model_card(**card)
    finally:
        trainer.accelerator.end_training()  # leaves the process group, which aborts at exit otherwise


def _carry_out(
    trainer: Any,
    checkpoint: str | None,
    predict_dataset: Any,
    write_predictions: Callable[[Path, Any], None] | None,
    noise: float | None,
    replaced: int,
    save_model: bool,
) -> None:
    args = trainer.args
    if args.do_train:
        trainer.add_callback(LogAtTheEnd)
        result = trainer.train(resume_from_checkpoint=checkpoint)
        noise_metrics = {} if noise is None else {"train_label_noise": noise, "train_labels_replaced": replaced}
        metrics = {**result.metrics, **noise_metrics}
        if save_model:
            trainer.save_model(_internal_call=True)  # without a push of its own
        _record(trainer, "train", metrics)
        if save_model and hasattr(trainer.model, "peft_config") and args.should_save:
            trainer.model.config.save_pretrained(args.output_dir)  # label names, without which it cannot be evaluated
        trainer.save_state()
    if args.do_eval:
        _record(trainer, "eval", evaluation_of_last_step(trainer) or trainer.evaluate())
    if args.do_predict:
        prediction = trainer.predict(predict_dataset)
        _record(trainer, "predict", {k.replace("test_", "predict_", 1): v for k, v in prediction.metrics.items()})
        if trainer.is_world_process_zero() and write_predictions is not None:
            write_predictions(Path(args.output_dir) / "predictions.csv", prediction.predictions)
    if args.do_train and trainer.is_world_process_zero():
        print("\n".join(summary(trainer.state.log_history, args, noise, replaced)))
        if save_model:
            print(f"model written to {args.output_dir}")


def evaluation_of_last_step(trainer: Any) -> dict[str, float] | None:
    """What training's own last evaluation found, if the weights are still those."""
    if not trainer.args.do_train or trainer.args.load_best_model_at_end:
        return None
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step > 0:
            return {key: value for key, value in entry.items() if key != "step"}
    return None


def _is_by_hand(card: Path) -> bool:
    """Whether a card is there that no Trainer wrote: neither transformers' nor one that this package completed."""
    marks = ("<!-- This model card has been generated automatically", "<!-- sam_hf -->")
    return card.is_file() and not any(mark in card.read_text("utf-8") for mark in marks)


class LogAtTheEnd(TrainerCallback):
    """A run that is shorter than `logging_steps` reports its losses too."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps


def _record(trainer: Any, split: str, metrics: dict[str, float]) -> None:
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


def summary(history: list[dict[str, float]], args: Any, noise: float | None, replaced: int) -> list[str]:
    """The lines of the final report."""
    evaluations = [entry for entry in history if "eval_loss" in entry]
    of_labels = "" if noise is None else f", label noise {noise:g} ({replaced} labels replaced)"
    lines = ["", f"method {args.sam_method}{of_labels}"]
    for key, name in (
        ("eval_accuracy", "accuracy"),
        ("eval_f1_micro", "micro F1"),
        ("eval_f1", "F1 of entities"),
        ("eval_chrf", "chrF"),
        ("eval_rougeL", "ROUGE-L"),
        ("eval_mean_token_accuracy", "accuracy of the next token"),
        ("eval_mse", "mean squared error"),
        ("eval_loss", "eval loss"),
    ):
        values = [entry[key] for entry in evaluations if key in entry]
        if values:
            before = f"{values[0]:.4f} before, " if args.eval_on_start and len(values) > 1 else ""
            lines.append(f"{name}: {before}{values[-1]:.4f} after")
    for key, name in (
        ("loss", "L(w), last log"),
        ("sam_perturbed_loss", "L(w+ε), last log"),
        ("sam_sharpness", "sharpness L(w+ε) - L(w), last log"),
        ("sam_rho", "ρ"),
        ("eval_sharpness_lambda_max", "λmax of the Hessian, last evaluation"),
        ("eval_sharpness_m", "m-sharpness, last evaluation"),
        ("train_runtime", "training seconds"),
    ):
        values = [entry[key] for entry in history if key in entry]
        if values:
            lines.append(f"{name}: {values[-1]:.4g}")
    return lines


def write_rows(path: Path, predictions: Iterable[str]) -> None:
    """A row an example: its number and what was predicted, as text."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["index", "prediction"])
        writer.writerows(enumerate(predictions))


def write_labels(path: Path, scores: Any, scheme: LabelScheme) -> None:
    """A row an example: the number predicted, or the label names and the probability of each class."""
    scores = scores[0] if isinstance(scores, tuple) else scores
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if scheme.problem_type == REGRESSION:
            writer.writerow(["index", "prediction"])
            writer.writerows(enumerate(scores.reshape(len(scores)).tolist()))
            return
        writer.writerow(["index", "prediction", *(f"probability_{name}" for name in scheme.names)])
        single = scheme.problem_type == SINGLE_LABEL
        shares = softmax(scores, axis=-1) if single else expit(scores)
        for i, row in enumerate(shares.tolist()):
            chosen = [int(np.argmax(row))] if single else [j for j, share in enumerate(row) if share > 0.5]
            writer.writerow([i, " ".join(scheme.names[j] for j in chosen), *row])

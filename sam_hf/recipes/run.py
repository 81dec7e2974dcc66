"""The part of a run that all recipes share: its start, training, evaluation, prediction, and the report."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax
from transformers import TrainerCallback, set_seed

from ..errors import UsageError
from ..inputs.checkpoints import model_path, weights_path
from ..inputs.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..metrics import load_metric
from ..trainer.checkpoints import last_whole_checkpoint

if TYPE_CHECKING:
    from ..inputs.labels import LabelScheme
    from ..inputs.options import ModelArguments


@dataclass(frozen=True)
class LabelNoise:
    """Noise on the training labels: the share that was asked for, and how many labels were replaced."""

    share: float
    replaced: int


def start_run(args: Any, model_arguments: ModelArguments) -> tuple[str, str, str | None]:
    """
    Set the seed, and find what the run starts from.

    Returns:
        `tuple[str, str, str | None]`: the pretrained checkpoint, for its configuration and tokenizer; the checkpoint
        that the weights are loaded from; and the checkpoint that training resumes from, if there is one.
    """
    set_seed(args.seed)
    resume_from = _checkpoint_to_resume(args, model_arguments.overwrite_output_dir)
    checkpoint = model_path(model_arguments.model_name_or_path or "")
    return checkpoint, weights_path(checkpoint, resume_from), resume_from


def _checkpoint_to_resume(args: Any, overwrite: bool) -> str | None:
    if args.resume_from_checkpoint:
        if not Path(args.resume_from_checkpoint).is_dir():
            raise UsageError(f"resume_from_checkpoint={args.resume_from_checkpoint} does not exist")
        return args.resume_from_checkpoint
    if Path(args.output_dir).is_file():
        raise UsageError(f"output_dir={args.output_dir} is a file: it must be a folder")
    if overwrite or not Path(args.output_dir).is_dir():
        return None
    return last_whole_checkpoint(args.output_dir)


def metrics_function(problem_type: str) -> Callable[[Any], dict[str, float]]:
    """Return a `compute_metrics` for Trainer that uses the metrics of this package."""
    metric = load_metric({REGRESSION: "regression", MULTI_LABEL: "multi_label"}.get(problem_type, "classification"))

    def compute_metrics(prediction: Any) -> dict[str, float]:
        scores, references = _scores(prediction.predictions), prediction.label_ids
        if problem_type == REGRESSION:
            outputs = scores.reshape(len(scores))
        elif problem_type == MULTI_LABEL:
            # A probability above one half is a logit above zero
            outputs, references = (scores > 0).astype(int), references.astype(int)
        else:
            outputs = scores.argmax(-1)
        return metric.compute(predictions=outputs, references=references)

    return compute_metrics


def label_columns(predictions: Any, scheme: LabelScheme) -> dict[str, list[Any]]:
    """Return the columns of `predictions.csv`: the number, or the names of the labels and each class's probability."""
    scores = _scores(predictions)
    if scheme.problem_type == REGRESSION:
        return {"prediction": scores.reshape(len(scores)).tolist()}
    single = scheme.problem_type == SINGLE_LABEL
    shares = softmax(scores, axis=-1) if single else expit(scores)
    chosen = ([row.argmax()] if single else np.flatnonzero(row > 0.5) for row in shares)
    return {
        "prediction": [" ".join(scheme.names[i] for i in indices) for indices in chosen],
        **{f"probability_{name}": shares[:, i].tolist() for i, name in enumerate(scheme.names)},
    }


def _scores(predictions: Any) -> Any:
    return predictions[0] if isinstance(predictions, tuple) else predictions


def run_recipe(
    trainer: Any,
    resume_from: str | None,
    card: dict[str, Any],
    *,
    save_model: bool = True,
    label_noise: LabelNoise | None = None,
    predict_dataset: Any = None,
    prediction_columns: Callable[[Any], Mapping[str, Sequence[Any]]] | None = None,
) -> None:
    """
    Train, evaluate and predict as `trainer.args` ask, write results and model card, print a summary, and push.

    Args:
        resume_from (`str`, *optional*): the checkpoint that training resumes from, see `start_run`.
        card (`dict`): arguments of the model card, see `card_arguments`.
        save_model (`bool`, *optional*, defaults to `True`): write the weights and the model card.
        label_noise (`LabelNoise`, *optional*): noise on the training labels, if the recipe offers any.
        predict_dataset (`Dataset`, *optional*): examples to predict.
        prediction_columns (`Callable`, *optional*): returns the columns of `predictions.csv` for the predictions.
    """
    args = trainer.args
    # peft and TRL write cards too, so this must be known before training
    card_by_hand = _is_by_hand(Path(args.output_dir) / "README.md")
    if label_noise and label_noise.share:
        share = f"{label_noise.share:.0%} of the training labels replaced by another class"
        trainer.model_card_facts["label noise"] = f"{share} ({label_noise.replaced} labels)"
    try:
        if args.do_train:
            _train(trainer, resume_from, label_noise, save_model)
        if args.do_eval:
            _record(trainer, "eval", _evaluation_of_last_step(trainer) or trainer.evaluate())
        if args.do_predict:
            _predict(trainer, predict_dataset, prediction_columns)
        if args.do_train and trainer.is_world_process_zero():
            print("\n".join(_summary(trainer.state.log_history, args, label_noise)))
            if save_model:
                print(f"model written to {args.output_dir}")
        # The push comes last: everything to push is written by now, and nothing is lost if the Hub fails
        if args.push_to_hub:
            trainer.push_to_hub(**card)
        elif args.do_train and save_model and not card_by_hand:
            trainer.create_model_card(**card)
    finally:
        trainer.accelerator.end_training()  # leaves the process group, which would abort at exit otherwise


def _train(trainer: Any, resume_from: str | None, label_noise: LabelNoise | None, save_model: bool) -> None:
    trainer.add_callback(LogLastStep)
    metrics = trainer.train(resume_from_checkpoint=resume_from).metrics
    if label_noise is not None:
        metrics |= {"train_label_noise": label_noise.share, "train_labels_replaced": label_noise.replaced}
    if save_model:
        trainer.save_model(_internal_call=True)  # without a push
    _record(trainer, "train", metrics)
    if save_model and hasattr(trainer.model, "peft_config") and trainer.args.should_save:
        # The adapters' files hold no label names, and evaluation needs these
        trainer.model.config.save_pretrained(trainer.args.output_dir)
    trainer.save_state()


def _predict(trainer: Any, dataset: Any, prediction_columns: Callable[[Any], Mapping[str, Sequence[Any]]] | None):
    prediction = trainer.predict(dataset)
    _record(trainer, "predict", {k.replace("test_", "predict_", 1): v for k, v in prediction.metrics.items()})
    if prediction_columns is not None and trainer.is_world_process_zero():
        columns = prediction_columns(prediction.predictions)
        with (Path(trainer.args.output_dir) / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["index", *columns])
            writer.writerows([i, *row] for i, row in enumerate(zip(*columns.values(), strict=True)))


def _evaluation_of_last_step(trainer: Any) -> dict[str, float] | None:
    """Return the metrics of the last evaluation during training, if the weights are still the same."""
    if not trainer.args.do_train or trainer.args.load_best_model_at_end:
        return None
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step > 0:
            return {key: value for key, value in entry.items() if key != "step"}
    return None


def _is_by_hand(card: Path) -> bool:
    """Return whether there is a card that neither transformers nor this package wrote."""
    marks = ("<!-- This model card has been generated automatically", "<!-- sam_hf -->")
    return card.is_file() and not any(mark in card.read_text("utf-8") for mark in marks)


class LogLastStep(TrainerCallback):
    """Logs the last step, so that a run that is shorter than `logging_steps` reports its losses too."""

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log |= state.global_step >= state.max_steps


def _record(trainer: Any, split: str, metrics: dict[str, float]) -> None:
    trainer.log_metrics(split, metrics)
    trainer.save_metrics(split, metrics)


def _summary(history: list[dict[str, float]], args: Any, noise: LabelNoise | None) -> list[str]:
    """Return the lines of the final report."""
    evaluations = [entry for entry in history if "eval_loss" in entry]
    noise_text = "" if noise is None else f", label noise {noise.share:g} ({noise.replaced} labels replaced)"
    lines = ["", f"method {args.sam_method}{noise_text}"]
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

"""The part of a run that all recipes share: its start, training, evaluation, prediction, and the report."""

from __future__ import annotations

import csv
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit, softmax
from transformers import set_seed

from ..errors import DivergedError
from ..inputs.checkpoints import model_path, weights_path
from ..inputs.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from ..metrics import load_metric
from .best_metric import METRICS
from .early_checks import check_options
from .non_finite import refuse_metrics, refuse_non_finite
from .resuming import Start, find_start
from .run_record import RunRecord
from .summary import LabelNoise as LabelNoise
from .summary import summary
from .training import Training, record

if TYPE_CHECKING:
    from ..inputs.labels import LabelScheme
    from ..inputs.options import ExampleArguments, ModelArguments


def start_run(
    args: Any, model_arguments: ModelArguments, data: ExampleArguments | None = None
) -> tuple[str, str, Start]:
    """
    Check the options, set the seed, and find what the run starts from.

    Args:
        args (`TrainingArguments`): the training arguments.
        model_arguments (`ModelArguments`): the pretrained checkpoint, and what is trained.
        data (`ExampleArguments`, *optional*): where the examples come from. Without it, a run in the same folder
            cannot be compared with the earlier one in this respect.

    Returns:
        `tuple[str, str, Start]`: the pretrained checkpoint, for its configuration and tokenizer; the checkpoint that
        the weights are loaded from; and what the run starts from, for `run_recipe`.
    """
    check_options(args, model_arguments)
    set_seed(args.seed)
    checkpoint = model_path(model_arguments.model_name_or_path or "")
    record = RunRecord.of(args, model_arguments, data) if args.do_train else RunRecord({})
    start = find_start(args, record, model_arguments.overwrite_output_dir)
    weights = weights_path(checkpoint, start.resume_from)
    return checkpoint, weights, replace(start, weights=weights)


def metrics_function(problem_type: str) -> Callable[[Any], dict[str, float]]:
    """
    Return a `compute_metrics` for Trainer that uses the metrics of this package. They are NaN if the model's outputs
    are: the greatest of them would be an answer.
    """
    metric = load_metric({REGRESSION: "regression", MULTI_LABEL: "multi_label"}.get(problem_type, "classification"))

    def compute_metrics(prediction: Any) -> dict[str, float]:
        scores, references = _scores(prediction.predictions), prediction.label_ids
        if not np.isfinite(scores).all():
            return dict.fromkeys(METRICS[problem_type], math.nan)
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
    start: Start,
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
        start (`Start`): what the run starts from, see `start_run`.
        card (`dict`): arguments of the model card, see `card_arguments`.
        save_model (`bool`, *optional*, defaults to `True`): write the weights and the model card.
        label_noise (`LabelNoise`, *optional*): noise on the training labels, if the recipe offers any.
        predict_dataset (`Dataset`, *optional*): examples to predict.
        prediction_columns (`Callable`, *optional*): returns the columns of `predictions.csv` for the predictions.

    Raises:
        DivergedError: the loss, the weights or the metrics are NaN or infinite at the end.
    """
    args = trainer.args
    # peft and TRL write cards too, so this must be known before training
    card_by_hand = _is_by_hand(Path(args.output_dir) / "README.md")
    if label_noise and label_noise.share:
        share = f"{label_noise.share:.0%} of the training labels replaced by another class"
        trainer.model_card_facts["label noise"] = f"{share} ({label_noise.replaced} labels)"
    try:
        refuse_non_finite(trainer, start.weights)
        training = Training(trainer, start, save_model, label_noise)
        if args.do_train:
            training.run()
        if args.do_eval:
            metrics = (training.has_trained and _evaluation_of_last_step(trainer)) or trainer.evaluate()
            record(trainer, "eval", metrics)
            refuse_metrics(metrics, training.written)
        if args.do_predict:
            _predict(trainer, predict_dataset, prediction_columns)
        if args.do_train and trainer.is_world_process_zero():
            print("\n".join(summary(trainer.state.log_history, args, label_noise)))
            print(training.written)
        if training.is_new and save_model and not card_by_hand and not args.push_to_hub:
            trainer.create_model_card(**card)
        training.complete()
        # The push comes last: everything to push is written by now, and nothing is lost if the Hub fails
        if args.push_to_hub:
            trainer.push_to_hub(**card)
    except DivergedError as error:
        if not trainer.is_world_process_zero():
            sys.exit(1)  # one process says it for all
        raise error
    finally:
        trainer.accelerator.end_training()  # leaves the process group, which would abort at exit otherwise


def _predict(trainer: Any, dataset: Any, prediction_columns: Callable[[Any], Mapping[str, Sequence[Any]]] | None):
    prediction = trainer.predict(dataset)
    record(trainer, "predict", {k.replace("test_", "predict_", 1): v for k, v in prediction.metrics.items()})
    if prediction_columns is not None and trainer.is_world_process_zero():
        columns = prediction_columns(prediction.predictions)
        with (Path(trainer.args.output_dir) / "predictions.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["index", *columns])
            writer.writerows([i, *row] for i, row in enumerate(zip(*columns.values(), strict=True)))


def _evaluation_of_last_step(trainer: Any) -> dict[str, float] | None:
    """Return the metrics of the last evaluation during training, if the weights are still the same."""
    if trainer.args.load_best_model_at_end:
        return None
    for entry in reversed(trainer.state.log_history):
        if "eval_loss" in entry and entry["step"] == trainer.state.global_step > 0:
            return {key: value for key, value in entry.items() if key != "step"}
    return None


def _is_by_hand(card: Path) -> bool:
    """Return whether there is a card that neither transformers nor this package wrote."""
    marks = ("<!-- This model card has been generated automatically", "<!-- sam_hf -->")
    return card.is_file() and not any(mark in card.read_text("utf-8") for mark in marks)

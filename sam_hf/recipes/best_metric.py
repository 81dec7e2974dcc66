"""Which metrics a recipe reports, and whether the best model can be chosen by the one that was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from ..errors import UsageError
from ..inputs.labels import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from .resuming import say

# The kinds of metrics besides the problem types of transformers
ENTITIES = "entities"
GENERATED_TEXT = "generated_text"
# What each metric of `sam_hf.metrics` computes
METRICS: dict[str, tuple[str, ...]] = {
    SINGLE_LABEL: ("accuracy", "f1_macro"),
    MULTI_LABEL: ("f1_micro", "f1_macro", "subset_accuracy"),
    REGRESSION: ("mse", "mae"),
    ENTITIES: ("f1", "precision", "recall", "accuracy"),
    GENERATED_TEXT: ("chrf", "bleu", "rouge1", "rouge2", "rougeL"),
}
_SHARPNESS = ("sharpness_lambda_max", "sharpness_m")
_SMALLEST_IS_BEST = {"loss", "mse", "mae", *_SHARPNESS}


def check_best_metric(args: Any, metrics: Sequence[str]) -> None:
    """
    Check `metric_for_best_model`, and let the smallest error be the best one: Trainer takes the greatest value of
    every metric whose name does not end in "loss".

    Args:
        args (`TrainingArguments`): the training arguments. `greater_is_better` may be set.
        metrics (`Sequence[str]`): the names of the metrics that an evaluation reports, besides the loss.

    Raises:
        UsageError: no evaluation reports this metric, or its worst value would be taken.
    """
    if args.metric_for_best_model is None:
        if getattr(args.save_strategy, "value", args.save_strategy) == "best":
            raise UsageError("save_strategy=best needs metric_for_best_model")
        return
    name = args.metric_for_best_model.removeprefix("eval_")
    known = ["loss", *(() if args.prediction_loss_only else metrics)]
    known += _SHARPNESS if args.sharpness_every_eval else ()
    if name not in known:
        close = get_close_matches(name, known, n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise UsageError(
            f"metric_for_best_model={args.metric_for_best_model} is not allowed: it must be one of {', '.join(known)}"
            f"{hint}"
        )
    _set_direction(args, name)
    if getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type) == "reduce_lr_on_plateau":
        mode = (args.lr_scheduler_kwargs or {}).get("mode", "min")
        if mode != ("max" if args.greater_is_better else "min"):
            raise UsageError(
                f"lr_scheduler_type=reduce_lr_on_plateau waits for {name} to fall: give "
                f'lr_scheduler_kwargs={{"mode": "{"max" if args.greater_is_better else "min"}"}}'
            )


def _set_direction(args: Any, name: str) -> None:
    smallest = name in _SMALLEST_IS_BEST
    if args.greater_is_better != smallest:
        return
    # Trainer's own choice is false for the loss and true for all others. Anything else was given
    if not smallest or name == "loss":
        raise UsageError(
            f"greater_is_better={args.greater_is_better} is not allowed with metric_for_best_model={name}, whose "
            f"{'smallest' if smallest else 'greatest'} value is the best: leave it out"
        )
    args.greater_is_better = False
    say(args, f"metric_for_best_model={name}: the smallest value is the best")

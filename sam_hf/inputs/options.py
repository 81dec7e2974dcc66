"""The options that several programs share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..errors import UsageError
from .labels import PROBLEM_TYPES


def option(default: Any, help: str, **metadata: Any) -> Any:
    """Return a dataclass field with a help text."""
    return field(default=default, metadata={"help": help, **metadata})


def at_least_one(arguments: Any, *names: str) -> None:
    """Check that the options `names` of a dataclass are 1 or more, if they are given."""
    for name in names:
        given = getattr(arguments, name)
        if given is not None and given < 1:
            raise UsageError(f"{name}={given} is not allowed: it must be at least 1")


@dataclass
class ExampleArguments:
    """Where the examples come from, and which of them are used."""

    help_title: ClassVar[str] = "Data"

    dataset_name: str | None = option(None, "Hub data set, folder saved by datasets, or demo:NAME.")
    dataset_config_name: str | None = option(None, "Configuration of the Hub data set.")
    train_file: str | None = option(None, "Training examples: csv, json, jsonl or parquet.")
    validation_file: str | None = option(None, "Validation examples.")
    test_file: str | None = option(None, "Examples to predict.")
    max_train_samples: int | None = option(None, "Use a random sample of at most this many training examples.")
    max_eval_samples: int | None = option(None, "The same for validation.")
    max_predict_samples: int | None = option(None, "Predict only this many examples, the first ones.")
    validation_split_percentage: int | None = option(
        None, "Validate only on this share of the training examples, the same ones in every run."
    )

    def __post_init__(self):
        at_least_one(self, "max_train_samples", "max_eval_samples", "max_predict_samples")
        share = self.validation_split_percentage
        if share is not None and not 1 <= share <= 99:
            raise UsageError(f"validation_split_percentage={share} is not allowed: it must be from 1 to 99")


@dataclass
class DataArguments(ExampleArguments):
    """The same for examples that have labels."""

    label_column: str | None = option(None, "Column with the labels. Default: label or labels.")
    problem_type: str | None = option(
        None, "What the labels are. Default: what their type suggests.", choices=list(PROBLEM_TYPES)
    )
    drop_unlabelled: bool = option(
        False, "Leave out examples without a label: empty, or -1 among classes. Default: refuse them."
    )
    label_noise: float = option(0.0, "Share of training labels replaced by another class, 0 <= share < 1.")

    def __post_init__(self):
        super().__post_init__()
        if not 0 <= self.label_noise < 1:
            raise UsageError(f"label_noise={self.label_noise} is not allowed: it must be at least 0 and below 1")


@dataclass
class ModelArguments:
    """The checkpoint that training starts from, and what is trained and saved."""

    help_title: ClassVar[str] = "Model"

    model_name_or_path: str | None = option(None, "Hub name, folder, or demo:NAME of the pretrained checkpoint.")
    overwrite_output_dir: bool = option(
        False, "Start again. Default: resume from the last checkpoint in output_dir, if there is one."
    )
    save_final_model: bool = option(True, "Write the trained weights to output_dir; false writes only the results.")
    lora_r: int | None = option(None, "Rank of LoRA adapters. Default: train all weights.")
    lora_alpha: float = option(16.0, "Scale of the adapters.")
    lora_dropout: float = option(0.0, "Dropout before the adapters.")
    lora_target_modules: list[str] | None = field(
        default=None, metadata={"help": "Modules with adapters. Default: every linear one."}
    )

    def __post_init__(self):
        if self.model_name_or_path is None:
            raise UsageError("model_name_or_path is missing: give a Hub name, a folder, or demo:NAME")
        if self.lora_r is not None and self.lora_r < 1:
            raise UsageError(f"lora_r={self.lora_r} is not allowed: it must be at least 1")
        if not 0 <= self.lora_dropout < 1:
            raise UsageError(f"lora_dropout={self.lora_dropout} is not allowed: it must be at least 0 and below 1")

"""The options that the text and the image program share."""

from __future__ import annotations

from dataclasses import dataclass, field


def option(default, help: str, **metadata):
    return field(default=default, metadata={"help": help, **metadata})


@dataclass
class DataArguments:
    """Where the examples come from, and which of them are used."""

    dataset_name: str | None = option(None, "Hub data set, folder saved by datasets, or demo:NAME.")
    dataset_config_name: str | None = option(None, "Configuration of the Hub data set.")
    train_file: str | None = option(None, "Training examples: csv, json, jsonl or parquet.")
    validation_file: str | None = option(None, "Validation examples.")
    test_file: str | None = option(None, "Examples to predict.")
    label_column: str | None = option(None, "Column with the labels. Default: label or labels.")
    max_train_samples: int | None = option(None, "Use at most this many training examples.")
    max_eval_samples: int | None = option(None, "Use at most this many validation examples.")
    max_predict_samples: int | None = option(None, "Use at most this many examples to predict.")
    label_noise: float = option(0.0, "Share of training labels replaced by another class, 0 <= R < 1.")


@dataclass
class ModelArguments:
    """The checkpoint that training starts from."""

    model_name_or_path: str | None = option(None, "Hub name, folder, or demo:NAME of the pretrained checkpoint.")
    overwrite_output_dir: bool = option(False, "Start again although output_dir holds a checkpoint.")
    lora_r: int | None = option(None, "Rank of LoRA adapters; 0 or none trains all weights.")
    lora_alpha: float = option(16.0, "Scale of the adapters.")
    lora_dropout: float = option(0.0, "Dropout before the adapters.")
    lora_target_modules: list[str] | None = option(None, "Modules with adapters. Default: every linear one.")

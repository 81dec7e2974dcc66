"""The checkpoints that `sam-hf sharpness` measures: classifiers of text or images, whole or as a LoRA adapter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    set_seed,
)
from transformers.utils import find_adapter_config_file, logging

from ...errors import UsageError
from ...inputs.checkpoint_files import fault_in_folder, reason
from ...inputs.checkpoints import from_checkpoint, label_arguments, model_path
from ...inputs.labels import LabelScheme

logger = logging.get_logger(__name__)


@dataclass
class Checkpoint:
    """
    A model before its weights are loaded.

    Attributes:
        name: its name in the report.
        given: its name or folder as the user gave it.
        path: its name or folder for `from_pretrained`.
        base: the base model of an adapter; `path` for a whole model.
        config: its configuration.
        kind: `"text"` or `"image"`.
    """

    name: str
    given: str
    path: str
    base: str
    config: Any
    kind: str

    @property
    def is_adapter(self) -> bool:
        return self.base != self.path

    @property
    def label_names(self) -> list[str] | None:
        """The labels in the order of the outputs, or `None` if they are only numbered, which is the default."""
        names = [str(self.config.id2label[i]) for i in range(self.config.num_labels)]
        return None if names == [f"LABEL_{i}" for i in range(len(names))] else names

    def outputs(self, labels: int) -> int:
        """Return the number of outputs of the head. A checkpoint without a head gets one for `labels` labels."""
        return self.config.num_labels if _has_head(self.config) or self.label_names else labels


def find_checkpoint(given: str, option: str) -> Checkpoint:
    """
    Find a checkpoint and read its configuration.

    Args:
        given (`str`): a folder, a Hub name or demo:NAME.
        option (`str`): the option that named it, for error messages.
    """
    path = base = model_path(given, option)
    adapter = _adapter_config(path)
    if adapter is not None:
        base = model_path(adapter.base_model_name_or_path, f"{option}={given}, base model")
    has_config = adapter is None or (Path(path) / "config.json").is_file()
    config = from_checkpoint(AutoConfig, path if has_config else base)
    name = Path(given.removeprefix("demo:")).name or Path(given).resolve().name
    return Checkpoint(name, given, path, base, config, _kind(config, given))


def check_labels(checkpoints: Sequence[Checkpoint]) -> None:
    """Check that two models have the same classes, in any order, and that both take text or both take images."""
    labels = {i: set(names) for i, c in enumerate(checkpoints) if (names := c.label_names) is not None}
    if len(labels) == 2 and labels[0] != labels[1]:
        others = [
            f"{checkpoint.given} has {', '.join(sorted(labels[i] - labels[1 - i])) or 'no other label'}"
            for i, checkpoint in enumerate(checkpoints)
        ]
        raise UsageError(f"the models have different labels: in addition to those in common, {'; '.join(others)}")
    if len({checkpoint.kind for checkpoint in checkpoints}) > 1:
        raise UsageError("one model takes text and the other images: they cannot be measured on the same examples")


def load_model(checkpoint: Checkpoint, scheme: LabelScheme, seed: int) -> Any:
    """
    Load a model in float32 and in evaluation mode. If the checkpoint has no head, its weights are drawn at random from
    `seed`, with a warning.
    """
    set_seed(seed)
    auto = AutoModelForImageClassification if checkpoint.kind == "image" else AutoModelForSequenceClassification
    model, loaded = from_checkpoint(
        auto,
        checkpoint.base,
        dtype=torch.float32,  # the rounding of a lower precision hides curvature
        **label_arguments(scheme.names),
        output_loading_info=True,
    )
    if checkpoint.is_adapter:
        return _with_adapter(model, checkpoint)
    missing = sorted({*loaded["missing_keys"], *(entry[0] for entry in loaded["mismatched_keys"])})
    if missing:
        logger.warning(f"{checkpoint.given} has no {', '.join(missing[:4])}: random weights are measured instead.")
    return model.eval()


def _with_adapter(model: Any, checkpoint: Checkpoint) -> Any:
    from peft import PeftModel

    try:
        # Sharpness is measured over the weights that were trained: the adapters, and the head saved with them
        return PeftModel.from_pretrained(model, checkpoint.path, is_trainable=True).eval()
    except (RuntimeError, ValueError, OSError, KeyError) as error:
        fault = fault_in_folder(checkpoint.path) if Path(checkpoint.path).is_dir() else None
        raise UsageError(fault or f"the adapter {checkpoint.given} does not fit {checkpoint.base}: {error}") from error


def _adapter_config(path: str) -> Any:
    """Return the configuration of an adapter, or `None` if `path` is a whole model."""
    try:
        if find_adapter_config_file(path) is None:
            return None
    except (OSError, ValueError) as error:
        raise UsageError(reason(path, error)) from error
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise UsageError(f'{path} is an adapter, which needs peft: pip install "sam-hf[peft]"') from error
    config = from_checkpoint(PeftConfig, path)
    if not config.base_model_name_or_path:
        raise UsageError(f"the adapter {path} does not name its base model")
    return config


def _kind(config: Any, given: str) -> str:
    for kind, ending, mapping in (
        ("image", "ForImageClassification", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
        ("text", "ForSequenceClassification", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    ):
        if type(config) in mapping or any(name.endswith(ending) for name in config.architectures or ()):
            return kind
    raise UsageError(f"{given} is a {config.model_type} model: this type has no classifier of text or of images")


def _has_head(config: Any) -> bool:
    return any("Classification" in name for name in config.architectures or ())

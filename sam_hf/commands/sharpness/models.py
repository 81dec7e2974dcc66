"""The checkpoints that `sam-hf sharpness` measures: text or image, whole or as a LoRA adapter, with their labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig
from transformers.utils import logging

from ...errors import UsageError
from ...inputs.checkpoints import from_checkpoint, model_path, outputs_named
from ...inputs.labels import LabelScheme

logger = logging.get_logger(__name__)


@dataclass
class Checkpoint:
    """
    Where a model is and what it is, before its weights are loaded.

    Attributes:
        name: what the report calls it.
        given: as the user gave it.
        path: as `from_pretrained` takes it.
        base: the model under an adapter; otherwise `path`.
        config: the model's configuration.
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
        """In the order of the outputs; `None` where they are only numbered, as transformers does by default."""
        names = [str(self.config.id2label[i]) for i in range(self.config.num_labels)]
        return None if names == [f"LABEL_{i}" for i in range(len(names))] else names

    def outputs(self, labels: int) -> int:
        """How many the head has, a new one for the data's `labels` where there is none yet."""
        return self.config.num_labels if _has_head(self.config) or self.label_names else labels


def find_checkpoint(given: str, option: str) -> Checkpoint:
    """
    Args:
        given (`str`): a folder, a Hub name or demo:NAME.
        option (`str`): the option that named it, for errors.
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
    """Refuse two models that do not tell the same classes apart; their order may differ."""
    named = [checkpoint for checkpoint in checkpoints if checkpoint.label_names is not None]
    sets = [set(checkpoint.label_names or ()) for checkpoint in named]
    if len(sets) == 2 and sets[0] != sets[1]:
        said = "; ".join(f"{c.given} has {', '.join(sorted(s - o)) or 'no other'}" for c, s, o in _pairs(named, sets))
        raise UsageError(f"the models have different labels: beside those in common, {said}")
    if len({checkpoint.kind for checkpoint in checkpoints}) > 1:
        raise UsageError("one model takes text and the other images: they cannot be measured on the same examples")


def load_model(checkpoint: Checkpoint, scheme: LabelScheme, seed: int) -> Any:
    """The model in float32, in evaluation mode. A head that the checkpoint lacks is drawn under `seed`, and said."""
    from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification, set_seed

    set_seed(seed)
    auto = AutoModelForImageClassification if checkpoint.kind == "image" else AutoModelForSequenceClassification
    import torch

    model, loaded = from_checkpoint(
        auto,
        checkpoint.base,
        dtype=torch.float32,  # rounding of a lower precision hides curvature
        **outputs_named(scheme.names),
        output_loading_info=True,
    )
    if checkpoint.is_adapter:
        return _with_adapter(model, checkpoint)
    fresh = sorted({*loaded["missing_keys"], *(entry[0] for entry in loaded["mismatched_keys"])})
    if fresh:
        logger.warning(f"{checkpoint.given} has no {', '.join(fresh[:4])}: drawn at random, and measured so.")
    return model.eval()


def _with_adapter(model: Any, checkpoint: Checkpoint) -> Any:
    from peft import PeftModel

    try:
        # Trainable: sharpness is measured over what was trained, the adapters and the head saved with them
        return PeftModel.from_pretrained(model, checkpoint.path, is_trainable=True).eval()
    except (RuntimeError, ValueError) as error:
        raise UsageError(f"the adapter {checkpoint.given} does not fit {checkpoint.base}: {error}") from error


def _adapter_config(path: str) -> Any:
    """The adapter's configuration, or `None` where `path` is a whole model."""
    from transformers.utils import find_adapter_config_file

    try:
        if find_adapter_config_file(path) is None:
            return None
    except (OSError, ValueError) as error:
        raise UsageError(f"the checkpoint {path} cannot be loaded: {error}") from error
    try:
        from peft import PeftConfig
    except ImportError as error:
        raise UsageError(f'{path} is an adapter, which needs peft: pip install "sam-hf[peft]"') from error
    config = PeftConfig.from_pretrained(path)
    if not config.base_model_name_or_path:
        raise UsageError(f"the adapter {path} does not name its base model")
    return config


def _kind(config: Any, given: str) -> str:
    from transformers import MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    for kind, ending, mapping in (
        ("image", "ForImageClassification", MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
        ("text", "ForSequenceClassification", MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING),
    ):
        if type(config) in mapping or any(name.endswith(ending) for name in config.architectures or ()):
            return kind
    raise UsageError(f"{given} is a {config.model_type} model: there is no classifier of text or images of that type")


def _has_head(config: Any) -> bool:
    return any("Classification" in name for name in config.architectures or ())


def _pairs(checkpoints: Sequence[Checkpoint], sets: Sequence[set[str]]):
    return zip(checkpoints, sets, reversed(sets), strict=True)

"""
Names in a model card that mean nothing on the Hub: folders of this machine, and data that have no name.

The Hub refuses a card that names a folder as its base model, and a path can be private.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from typing import Any

from huggingface_hub import RepoCard
from huggingface_hub.utils import HFValidationError, validate_repo_id

_NOT_ON_HUB = "a checkpoint that is not on the Hub"
_ADAPTER_OF = "base_model:adapter:"  # PEFT's tag: this, and the name of the base model
_UNKNOWN = "unknown"
# For data without a name, datasets reports how it loaded them
_NAMELESS = {"csv", "json", "pandas", "parquet", "arrow", "text", "xml", "imagefolder", "generator", _UNKNOWN}


def local_base_models(model: Any) -> set[str]:
    """Return the folders from which the model and the base of its adapters were loaded."""
    names = {getattr(getattr(model, "config", None), "_name_or_path", None)}
    adapters = getattr(model, "peft_config", None) or {}
    names |= {getattr(adapter, "base_model_name_or_path", None) for adapter in adapters.values()}
    return {name for name in names if isinstance(name, str) and os.path.isdir(name)}


def remove_local_names(card: RepoCard, local_names: Collection[str], finetuned_from: str | None = None) -> None:
    """
    Remove the names of folders from the places of a card that name a model on the Hub.

    Args:
        card (`RepoCard`): the card to change.
        local_names (`Collection[str]`): names that are folders, or were folders when training started.
        finetuned_from (`str`, *optional*): the name that replaces them.
    """
    given = card.data.get("base_model")
    names = as_list(given)
    # "None" is what a trainer writes for a configuration without a name
    removed = {name for name in [*names, *local_names, "None"] if not _is_on_hub(name, local_names)}
    kept = [name for name in names if name not in removed] or ([finetuned_from] if finetuned_from else [])
    card.data["base_model"] = (kept or None) if isinstance(given, list) else next(iter(kept), None)
    if tags := as_list(card.data.get("tags")):
        new_tag = _ADAPTER_OF + finetuned_from if finetuned_from else None
        renamed = {_ADAPTER_OF + name: new_tag for name in removed}
        card.data["tags"] = [tag for tag in (renamed.get(tag, tag) for tag in tags) if tag is not None]
    # Trainer writes an empty name for a model that was made from a configuration
    text = card.text.replace("is a fine-tuned version of [](https://huggingface.co/)", "was trained from scratch")
    for name in removed:
        text = text.replace(f"[{name}](https://huggingface.co/{name})", _NOT_ON_HUB)
    if local_names and finetuned_from is None:
        text = text.replace("model was trained from scratch on", f"model is a fine-tuned version of {_NOT_ON_HUB} on")
    card.text = text


def _is_on_hub(name: Any, local_names: Collection[str]) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return name != "None" and name not in local_names and not os.path.isdir(name)


def data_arguments(trainer: Any) -> dict[str, str]:
    """
    Return arguments of the model card for data that have no name on the Hub. Without them, Trainer leaves the results
    out, and it calls data that were made in memory "the None dataset".
    """
    data = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
    loader = getattr(data, "builder_name", None) or _UNKNOWN
    return {"dataset": _UNKNOWN, "dataset_tags": loader} if loader in _NAMELESS else {}


def remove_nameless_data(card: RepoCard) -> None:
    """Remove data from files or memory from the card's data sets. The results still say what they are called."""
    given = as_list(card.data.get("datasets"))
    named = [name for name in given if name not in _NAMELESS]
    if named != given:
        card.data["datasets"] = named or None
    for model in card.data.get("model-index") or []:
        for data in (result.get("dataset") or {} for result in model.get("results") or []):
            if data.get("type") in _NAMELESS:
                for key in ("config", "split", "args"):  # they describe the loader, not the data
                    data.pop(key, None)
    card.text = card.text.replace(f" on the {_UNKNOWN} dataset.", f" on an {_UNKNOWN} dataset.")


def as_list(value: Any) -> list[Any]:
    """Return the entries of a field of the metadata, which may be one string."""
    return [value] if isinstance(value, str) else [entry for entry in value or [] if entry is not None]

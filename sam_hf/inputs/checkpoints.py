"""Checkpoints: where they are, and errors that say so in one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .demo import demo_model_path, is_demo


def model_path(name: str, option: str = "model_name_or_path") -> str:
    """What `from_pretrained` takes for `option`: a folder, a Hub name, or the folder of `demo:NAME`."""
    if is_demo(name):
        return demo_model_path(name)
    is_hub_name = name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    if not Path(name).is_dir() and not is_hub_name:
        raise UsageError(f"{option}={name}: the folder does not exist")
    return name


def starting_point(path: str, resume_from: str | None) -> str:
    """
    The folder whose weights the model is made of: on resume, those of the checkpoint.

    Trainer loads a checkpoint by the names its tensors have on disk, and merely warns of those that the model does not
    know: ViT in transformers 5.23, whose names were changed, would go on with a fresh encoder. `from_pretrained`
    knows the old names.
    """
    whole_model = resume_from is not None and (Path(resume_from) / "config.json").is_file()
    return resume_from if resume_from is not None and whole_model else path


def outputs_named(names: Sequence[str]) -> dict[str, Any]:
    """Arguments of `from_pretrained` for an output a name, in a new head where the checkpoint's has another shape."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "ignore_mismatched_sizes": True,
    }


def from_checkpoint(auto_class: Any, path: str, **kwargs: Any) -> Any:
    """`auto_class.from_pretrained(path, ...)`, with an unknown name or an incomplete folder as one line."""
    try:
        return auto_class.from_pretrained(path, **kwargs)
    except (OSError, ValueError) as error:
        raise UsageError(f"the checkpoint {path} cannot be loaded: {error}") from error

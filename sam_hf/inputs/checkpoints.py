"""Finding and loading checkpoints, with errors of one line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .checkpoint_files import fault_in_folder, reason, without_vocabulary
from .demo import demo_model_path, is_demo


def model_path(name: str, option: str = "model_name_or_path") -> str:
    """
    Return what `from_pretrained` takes for the value `name` of `option`; for `demo:NAME` this is a folder.

    Raises:
        UsageError: the folder does not exist, or a file in it is a pointer, cut short or broken.
    """
    if is_demo(name):
        return demo_model_path(name)
    is_hub_name = name.count("/") <= 1 and not name.startswith((".", "/", "~"))
    if not Path(name).is_dir() and not is_hub_name:
        raise UsageError(f"{option}={name}: the folder does not exist")
    if Path(name).is_dir() and (fault := fault_in_folder(name)) is not None:
        raise UsageError(fault)
    return name


def weights_path(path: str, resume_from: str | None) -> str:
    """
    Return where the weights of the new model are: `path`, or on resume the checkpoint `resume_from` if it is whole.

    Trainer loads a checkpoint by the names that its tensors have on disk, and only warns about names that the model
    does not know. In transformers 5.23 the names of ViT changed, so it would continue with a fresh encoder.
    `from_pretrained` knows the old names.
    """
    return resume_from if resume_from is not None and (Path(resume_from) / "config.json").is_file() else path


def label_arguments(names: Sequence[str]) -> dict[str, Any]:
    """Return arguments of `from_pretrained`: one output per name, in a new head if the checkpoint's shape differs."""
    return {
        "num_labels": len(names),
        "id2label": dict(enumerate(names)),
        "label2id": {name: i for i, name in enumerate(names)},
        "ignore_mismatched_sizes": True,
    }


def from_checkpoint(auto_class: Any, path: str, **kwargs: Any) -> Any:
    """
    Return `auto_class.from_pretrained(path, ...)`.

    Raises:
        UsageError: the checkpoint cannot be loaded, or its tokenizer knows no word.
    """
    try:
        loaded = auto_class.from_pretrained(path, **kwargs)
    except MemoryError:
        raise
    except Exception as error:  # of transformers, tokenizers, safetensors, torch, pickle or json
        if type(error).__name__ == "OutOfMemoryError":  # of torch: the checkpoint is not to blame
            raise
        fault = fault_in_folder(path) if Path(path).is_dir() else None
        raise UsageError(fault or reason(path, error)) from error
    if auto_class.__name__ == "AutoTokenizer" and (fault := without_vocabulary(path, loaded)) is not None:
        raise UsageError(fault)
    return loaded

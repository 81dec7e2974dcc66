"""
The record of what determines a training run: model, data and options. It is kept in `output_dir` and in every
checkpoint, so that a second run in the same folder can be compared with what was trained there.

Files are compared by their content and not by path or time, so a copy on another machine is the same. The record holds
no paths, since checkpoints are pushed to the Hub.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate.utils import broadcast_object_list
from transformers import TrainingArguments

from ..arguments.fields import SAMArguments
from ..trainer.checkpoints import load_record, save_record

if TYPE_CHECKING:
    from ..inputs.options import ExampleArguments, ModelArguments

_VERSION = 1
# Those fields of TrainingArguments that change the weights, besides the size of a batch and the number of updates
_TRAINING = (
    "learning_rate lr_scheduler_type lr_scheduler_kwargs warmup_steps weight_decay max_grad_norm optim optim_args "
    "optim_target_modules adam_beta1 adam_beta2 adam_epsilon label_smoothing_factor neftune_noise_alpha bf16 fp16 "
    "seed data_seed train_sampling_strategy dataloader_drop_last average_tokens_across_devices"
).split()
# Options of other trainers and of the data that do not change the weights
_OTHER = {"predict_with_generate", "generation_max_length", "generation_num_beams", "generation_config"}
_OTHER |= {"dataset_num_proc", "eval_packing", "activation_offloading", "channels_last"}
_OF_EVALUATION = ("validation_file", "validation_dir", "test_", "max_eval_samples", "max_predict_samples")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin", "adapter_model.bin", "config.json", "adapter_config.json")
_CONTENT = "content"


@dataclass
class RunRecord:
    """
    What determines a run.

    Attributes:
        options: name -> value. For files the value is `{"name": ..., "content": a hash}`.
        run: an identifier that the run's checkpoints have in common.
        complete: the run has ended, and everything is written.
    """

    options: dict[str, Any]
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    complete: bool = False

    @classmethod
    def of(cls, args: Any, model: ModelArguments, data: ExampleArguments | None) -> RunRecord:
        """Return the record of the run with these arguments. The first process makes it, since it reads the files."""
        made: list[RunRecord | None] = [None]
        if args.process_index == 0:
            made = [cls({**_model_options(model), **_data_options(data), **_training_options(args)})]
        broadcast_object_list(made)
        assert made[0] is not None
        return made[0]

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord | None:
        """Return the record in a folder, or `None` if there is none that this version can read."""
        content = load_record(folder) or {}
        options, run = content.get("options"), content.get("run")
        if content.get("version") != _VERSION or not isinstance(options, dict) or not isinstance(run, str):
            return None
        return cls(options, run, bool(content.get("complete")))

    def write(self, folder: str | Path) -> None:
        save_record(folder, self.as_json())

    def as_json(self) -> dict[str, Any]:
        return {"version": _VERSION, "run": self.run, "complete": self.complete, "options": self.options}

    def differences(self, asked: RunRecord) -> list[tuple[str, str, str]]:
        """Return the options in which `asked` differs: name, value of this record, value that is asked for."""
        # An option that only one version of the package knows, or only one method, cannot be compared
        common = [name for name in self.options if name in asked.options]
        return [
            (name, *_in_words(self.options[name], asked.options[name]))
            for name in common
            if not _is_same(self.options[name], asked.options[name])
        ]


def _model_options(model: ModelArguments) -> dict[str, Any]:
    name = model.model_name_or_path or ""
    folder = Path(name)
    identity = _folder(folder, _hash_of_weights(folder)) if folder.is_dir() else name
    adapters = {name: _plain(getattr(model, name)) for name in ("lora_alpha", "lora_dropout", "lora_target_modules")}
    return {"model_name_or_path": identity, "lora_r": model.lora_r, **(adapters if model.lora_r else {})}


def _data_options(data: ExampleArguments | None) -> dict[str, Any]:
    if data is None:
        return {}
    names = [f.name for f in fields(data) if not f.name.startswith(_OF_EVALUATION) and f.name not in _OTHER]
    return {name: _data_value(name, getattr(data, name)) for name in names}


def _data_value(name: str, value: Any) -> Any:
    if not isinstance(value, str) or not name.endswith(("_file", "_dir", "dataset_name")) or not Path(value).exists():
        return _plain(value)
    path = Path(value)
    if path.is_file():
        return {"name": path.name, _CONTENT: _hash([path], whole=True)}
    # Of images, the names and sizes will do. Those of a data set that was saved by datasets are always much the same
    return _folder(path, _hash(_files(path), root=path, whole=name == "dataset_name"))


def _training_options(args: Any) -> dict[str, Any]:
    sam = [f.name for f in fields(SAMArguments) if f.name.startswith("sam_")]
    known = {f.name for kind in (TrainingArguments, SAMArguments) for f in fields(kind)}
    others = [f.name for f in fields(args) if f.name not in known | _OTHER]
    # Without a method, its options have no effect
    names = [*(["sam_method"] if args.sam_method == "none" else sam), *_TRAINING, *others]
    size = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    values = {name: _plain(getattr(args, name)) for name in names if hasattr(args, name)}
    return {**values, "examples per update": size}


def _plain(value: Any) -> Any:
    """Return a value as JSON has it."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return value if value is None or isinstance(value, str | int | float | bool) else str(value)


def _is_same(first: Any, second: Any) -> bool:
    if _has_content(first) and _has_content(second):
        return first[_CONTENT] == second[_CONTENT]
    return first == second


def _in_words(first: Any, second: Any) -> tuple[str, str]:
    if _has_content(first) and _has_content(second) and first["name"] == second["name"]:
        return f"{first['name']} as it was", f"{second['name']} with another content"
    return _word(first), _word(second)


def _word(value: Any) -> str:
    return str(value["name"] if _has_content(value) else value)


def _has_content(value: Any) -> bool:
    return isinstance(value, Mapping) and _CONTENT in value


def _folder(path: Path, content: str) -> dict[str, str]:
    return {"name": path.resolve().name, _CONTENT: content}


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _hash_of_weights(folder: Path) -> str:
    """Return a hash of samples of the weights: training changes all of them."""
    files = sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern) if path.is_file())
    return _hash(files, root=folder, sampled=True)


def _hash(files: Any, root: Path | None = None, whole: bool = False, sampled: bool = False) -> str:
    """
    Return a hash of files.

    Args:
        files (`Iterable[Path]`): the files.
        root (`Path`, *optional*): hash their names in this folder and their sizes too.
        whole (`bool`, *optional*, defaults to `False`): hash all they hold.
        sampled (`bool`, *optional*, defaults to `False`): hash 16 blocks of each.
    """
    digest = hashlib.sha256()
    for path in files:
        size = path.stat().st_size
        if root is not None:
            digest.update(f"{path.relative_to(root).as_posix()} {size}\n".encode())
        block = 1 << 20 if whole else 1 << 16
        stride = block if whole else max(block, size // 16)
        with path.open("rb") as file:
            for start in range(0, size if whole or sampled else 0, stride):
                file.seek(start)
                digest.update(file.read(block))
    return digest.hexdigest()[:32]

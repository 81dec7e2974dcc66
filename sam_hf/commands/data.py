"""Loading the splits, with errors before the model is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from .cli import UsageError

if TYPE_CHECKING:
    from datasets import DatasetDict

    from .arguments import DataArguments

_LOADERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def load_splits(arguments: DataArguments) -> DatasetDict:
    """The splits that `arguments` name, cut to the `max_*_samples` and none of them empty."""
    from datasets import DatasetDict

    files = {"train": arguments.train_file, "validation": arguments.validation_file, "test": arguments.test_file}
    files = {split: file for split, file in files.items() if file is not None}
    if arguments.dataset_name and files:
        raise UsageError(f"dataset_name={arguments.dataset_name} and files were given: give one or the other")
    if not arguments.dataset_name and not files:
        raise UsageError("no data: give dataset_name, or train_file, validation_file or test_file")
    splits = (
        DatasetDict({split: _load_file(file) for split, file in files.items()}) if files else _load_named(arguments)
    )
    limits = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_predict_samples,
    }
    for split in splits:
        if len(splits[split]) == 0:
            raise UsageError(f"the {split} split is empty")
        limit = limits.get(split)
        if limit is not None:
            if limit < 1:
                raise UsageError(f"at most {limit} examples of the {split} split: it must be at least 1")
            splits[split] = splits[split].select(range(min(limit, len(splits[split]))))
    return splits


def _load_file(file: str):
    from datasets import load_dataset

    loader = _LOADERS.get(Path(file).suffix.lower())
    if loader is None:
        raise UsageError(f"{file} is of no known kind: it must end in {', '.join(_LOADERS)}")
    if not Path(file).is_file():
        raise UsageError(f"the file {file} does not exist")
    try:
        return load_dataset(loader, data_files=file, split="train")
    except Exception as error:  # pandas', Arrow's and datasets' own errors
        raise UsageError(f"the file {file} cannot be read: {error.__cause__ or error}") from error


def _load_named(arguments: DataArguments) -> DatasetDict:
    from datasets import DatasetDict, load_dataset, load_from_disk

    from .demo import is_demo, load_demo_dataset

    name = arguments.dataset_name
    if is_demo(name):
        return load_demo_dataset(name)
    if (Path(name) / "dataset_dict.json").is_file():
        return load_from_disk(name)
    try:
        return DatasetDict(load_dataset(name, arguments.dataset_config_name))
    except Exception as error:  # datasets' and the Hub client's own errors
        raise UsageError(f"the data set {name} cannot be loaded: {error}") from error

"""Loading the splits and their labels, with errors before the model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from ..errors import UsageError
from .checkpoints import from_checkpoint
from .labels import LabelScheme, add_label_noise, encode, find_label_column, has_labels, infer_scheme

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from .options import DataArguments, ExampleArguments

LOADERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Keep the bars of datasets off stderr while the data are checked, where an error is to be the only line."""
    import datasets

    were_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()


def load_splits(arguments: ExampleArguments, folders: Mapping[str, str | None] | None = None) -> DatasetDict:
    """
    The splits that `arguments` name, none of them empty.

    Args:
        arguments (`ExampleArguments`): where the examples come from.
        folders (`Mapping[str, str | None]`, *optional*): for images, a folder of class folders a split.
    """
    from datasets import DatasetDict

    files = {"train": arguments.train_file, "validation": arguments.validation_file, "test": arguments.test_file}
    given_files = {split: file for split, file in files.items() if file is not None}
    given_folders = {split: folder for split, folder in (folders or {}).items() if folder is not None}
    twice = sorted(given_files.keys() & given_folders.keys())
    if twice:
        raise UsageError(f"both a file and a folder were given for {twice[0]}: give one or the other")
    if arguments.dataset_name and (given_files or given_folders):
        raise UsageError(f"dataset_name={arguments.dataset_name} and files were given: give one or the other")
    if arguments.validation_split_percentage is not None and "validation" in {**given_files, **given_folders}:
        raise UsageError("validation_split_percentage and validation examples were given: give one or the other")
    if not arguments.dataset_name and not given_files and not given_folders:
        raise UsageError("no data: give dataset_name, or train_file, validation_file or test_file")
    if arguments.dataset_name:
        splits = _load_named(arguments.dataset_name, arguments.dataset_config_name)
    else:
        splits = DatasetDict({split: _load_file(file) for split, file in given_files.items()})
        splits.update({split: _load_folder(folder) for split, folder in given_folders.items()})
    if arguments.validation_split_percentage is not None:
        # Only examples cut off from training are to be validated on: these are not so much as looked at
        splits.pop("validation", None)
    empty = [split for split in splits if len(splits[split]) == 0]
    if empty:
        raise UsageError(f"the {empty[0]} split is empty")
    return splits


@without_progress_bars()
def load_examples(arguments: ExampleArguments, args: Any) -> DatasetDict:
    """
    The splits a run needs, with their columns as they are.

    Args:
        arguments (`ExampleArguments`): where the examples come from, and how many are used.
        args ([`~transformers.TrainingArguments`]): what is to be done.
    """
    splits = _load_needed(arguments, args)
    for split in splits:
        splits[split] = _limited(splits[split], split, arguments)
    if arguments.validation_split_percentage is not None:
        share = arguments.validation_split_percentage
        splits["train"], splits["validation"] = _cut(splits["train"], share, arguments.max_eval_samples)
    return splits


@without_progress_bars()
def load_labelled(
    arguments: DataArguments, args: Any, checkpoint: str, folders: Mapping[str, str | None] | None = None
) -> tuple[DatasetDict, LabelScheme, int]:
    """
    The splits a run needs, with their labels encoded in the column `labels` and noise on those of training.

    Args:
        arguments (`DataArguments`): where the examples come from.
        args ([`~transformers.TrainingArguments`]): what is to be done, and the seed of the noise.
        checkpoint (`str`): the model, whose labels hold where there is no training split.
        folders (`Mapping[str, str | None]`, *optional*): see `load_splits`.

    Returns:
        `tuple[DatasetDict, LabelScheme, int]`: splits, label scheme, number of labels replaced by noise.
    """
    splits = _load_needed(arguments, args, folders)
    cut = arguments.validation_split_percentage
    if "train" in splits or "validation" in splits:
        column = find_label_column(splits["train" if "train" in splits else "validation"], arguments.label_column)
    else:
        guesses = [arguments.label_column, "label", "labels"]
        column = next((name for name in guesses if name and name in splits["test"].column_names), "label")
    if "train" in splits:
        scheme = infer_scheme(splits["train"], column, arguments.problem_type)
    else:
        scheme = LabelScheme.of_checkpoint(from_checkpoint(AutoConfig, checkpoint))
    replaced = 0
    for split in splits:
        splits[split] = _limited(splits[split], split, arguments)
        if split == "test" and not has_labels(splits[split], column, scheme):
            splits[split] = splits[split].remove_columns([c for c in [column] if c in splits[split].column_names])
        else:
            splits[split] = encode(splits[split], find_label_column(splits[split], column), scheme, split)
    if cut is not None:
        splits["train"], splits["validation"] = _cut(splits["train"], cut, arguments.max_eval_samples)
    if args.do_train:
        seed = args.seed if args.data_seed is None else args.data_seed
        splits["train"], replaced = add_label_noise(splits["train"], arguments.label_noise, scheme, seed)
        if cut is not None:
            # They come from the same hands as the training labels, and nobody knows which of them are wrong
            splits["validation"], _ = add_label_noise(splits["validation"], arguments.label_noise, scheme, (seed, 1))
    return splits, scheme, replaced


def _load_needed(
    arguments: ExampleArguments, args: Any, folders: Mapping[str, str | None] | None = None
) -> DatasetDict:
    """The splits for what `args` ask to do, before any of their examples is left out."""
    splits = load_splits(arguments, folders)
    cut = arguments.validation_split_percentage
    needed = {"train": args.do_train, "validation": args.do_eval or args.eval_on_start, "test": args.do_predict}
    if cut is not None:
        if not args.do_train:
            raise UsageError(f"validation_split_percentage={cut} cuts the training examples: it needs do_train")
        needed["validation"] = False
    if not any(needed.values()):
        raise UsageError("nothing to do: give do_train, do_eval or do_predict")
    if args.sharpness_every_eval and not args.do_train:
        raise UsageError("sharpness_every_eval measures the loss of the training examples: give do_train too")
    for split, wanted in needed.items():
        if wanted and split not in splits:
            raise UsageError(f"there is no {split} split: the data have {', '.join(splits)}")
    for split in [split for split in splits if not needed.get(split)]:
        del splits[split]
    return splits


def _limited(dataset: Dataset, split: str, arguments: ExampleArguments) -> Dataset:
    limits = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_predict_samples,
    }
    return sample(dataset, limits[split])


def _cut(train: Dataset, percentage: int, limit: int | None) -> tuple[Dataset, Dataset]:
    """Training and (at most `limit`) validation examples made of `train`, the same ones in every run."""
    validation = round(len(train) * percentage / 100)
    if not 0 < validation < len(train):
        raise UsageError(f"validation_split_percentage={percentage} of {len(train)} training examples leaves none")
    # By a seed that is not max_train_samples' own: the order in which that one left them says nothing of this one
    shuffled = train.shuffle(seed=1)
    return (
        shuffled.select(range(validation, len(train))).flatten_indices(),
        shuffled.select(range(min(validation, limit or validation))).flatten_indices(),
    )


def sample(dataset: Dataset, limit: int | None) -> Dataset:
    """At most `limit` examples. Not the first rows, which may all be of one class; the same ones in every run."""
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.shuffle(seed=0).select(range(limit)).flatten_indices()


def _load_file(file: str):
    from datasets import load_dataset

    loader = LOADERS.get(Path(file).suffix.lower())
    if loader is None:
        raise UsageError(f"{file} is of no known kind: it must end in {', '.join(LOADERS)}")
    if not Path(file).is_file():
        raise UsageError(f"the file {file} does not exist")
    try:
        return load_dataset(loader, data_files=file, split="train")
    except Exception as error:  # pandas', Arrow's and datasets' own errors
        raise UsageError(f"the file {file} cannot be read: {error.__cause__ or error}") from error


def _load_folder(folder: str):
    from datasets import load_dataset

    try:
        # A pattern for every file, or datasets takes a class folder or file that is named "test" for a split
        files = {"train": "**"}
        dataset = load_dataset("imagefolder", data_dir=folder, data_files=files, drop_labels=False, split="train")
    except Exception as error:  # Arrow's and datasets' own errors
        raise UsageError(f"the folder {folder} cannot be read: {error.__cause__ or error}") from error
    has_classes = any(entry.is_dir() for entry in Path(folder).iterdir())
    return dataset if has_classes else dataset.remove_columns("label")


def _load_named(name: str, configuration: str | None) -> DatasetDict:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    from .demo import is_demo, load_demo_dataset

    if is_demo(name):
        return load_demo_dataset(name)
    if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        saved = load_from_disk(name)
        return DatasetDict({"train": saved}) if isinstance(saved, Dataset) else saved
    if name.startswith((".", "/", "~")) and not Path(name).exists():
        raise UsageError(f"dataset_name={name}: the folder does not exist")
    try:
        return DatasetDict(load_dataset(name, configuration))
    except Exception as error:  # datasets' and the Hub client's own errors
        raise UsageError(f"the data set {name} cannot be loaded: {error}") from error

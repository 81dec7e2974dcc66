"""Loading the splits and their labels. What is wrong with them is reported before the model is loaded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig

from ..errors import UsageError
from .checkpoints import from_checkpoint
from .files import read_file
from .labels import (
    LabelScheme,
    add_label_noise,
    check_has_classes,
    encode_labels,
    find_label_column,
    has_labels,
    infer_scheme,
    labelled,
)

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from .options import DataArguments, ExampleArguments


@contextmanager
def without_progress_bars() -> Iterator[None]:
    """Hide the progress bars of datasets while the data are checked, so that an error is the only line on stderr."""
    import datasets

    were_shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if were_shown:
            datasets.enable_progress_bars()


def load_splits(
    arguments: ExampleArguments, folders: Mapping[str, str | None] | None = None, drop_unlabelled: bool = False
) -> DatasetDict:
    """
    Return the splits that `arguments` name. None of them is empty.

    Args:
        arguments (`ExampleArguments`): where the examples come from.
        folders (`Mapping[str, str | None]`, *optional*): for images, a folder of class folders per split. That of
            `test` may hold images without a class.
        drop_unlabelled (`bool`, *optional*, defaults to `False`): leave out images beside class folders.
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
    if arguments.dataset_name:
        splits = _load_named(arguments.dataset_name, arguments.dataset_config_name)
    elif given_files or given_folders:
        splits = DatasetDict({split: read_file(file) for split, file in given_files.items()})
        for split, folder in given_folders.items():
            from .image_folders import load_image_folder  # pillow is an optional dependency

            splits[split] = load_image_folder(folder, split != "test", drop_unlabelled)
    else:
        raise UsageError("no data: give dataset_name, or train_file, validation_file or test_file")
    if arguments.validation_split_percentage is not None:
        # The run validates on examples cut off from training. It does not even look at the validation split
        splits.pop("validation", None)
    for split, dataset in splits.items():
        if len(dataset) == 0:
            raise UsageError(f"the {split} split is empty")
    return splits


@without_progress_bars()
def load_examples(arguments: ExampleArguments, args: Any) -> DatasetDict:
    """
    Return the splits that a run needs, with their columns as they are.

    Args:
        arguments (`ExampleArguments`): where the examples come from, and how many are used.
        args ([`~transformers.TrainingArguments`]): which of training, evaluation and prediction are to be done.
    """
    return _limited(_load_needed(arguments, args), arguments)


@without_progress_bars()
def load_labelled(
    arguments: DataArguments, args: Any, checkpoint: str, folders: Mapping[str, str | None] | None = None
) -> tuple[DatasetDict, LabelScheme, int]:
    """
    Return the splits that a run needs, with encoded labels in the column `labels` and noise on the training labels.

    Args:
        arguments (`DataArguments`): where the examples come from.
        args ([`~transformers.TrainingArguments`]): which of training, evaluation and prediction are to be done, and
            the seed of the noise.
        checkpoint (`str`): the model, whose labels are used if there is no training split.
        folders (`Mapping[str, str | None]`, *optional*): see `load_splits`.

    Returns:
        `tuple[DatasetDict, LabelScheme, int]`: splits, label scheme, number of labels replaced by noise.
    """
    splits = _load_needed(arguments, args, folders, arguments.drop_unlabelled)
    scheme = _scheme(splits, arguments, checkpoint)
    replaced = 0
    for split, dataset in splits.items():
        splits[split] = _encoded(dataset, split, scheme, arguments)
    if "train" in splits:
        check_has_classes(splits["train"], scheme)
    _limited(splits, arguments)
    if args.do_train:
        seed = args.seed if args.data_seed is None else args.data_seed
        splits["train"], replaced = add_label_noise(splits["train"], arguments.label_noise, scheme, seed)
        if arguments.validation_split_percentage is not None:
            # These are training labels too, and whoever has wrong ones does not know which are wrong
            splits["validation"], _ = add_label_noise(splits["validation"], arguments.label_noise, scheme, (seed, 1))
    return splits, scheme, replaced


def _scheme(splits: DatasetDict, arguments: DataArguments, checkpoint: str) -> LabelScheme:
    """Return the labels of the training examples; without them, those that the checkpoint was trained with."""
    given = arguments.label_column
    if "train" in splits:
        column = find_label_column(splits["train"], given, "train")
        problem_type, drop = arguments.problem_type, arguments.drop_unlabelled
        splits["train"] = labelled(splits["train"], column, "train", problem_type=problem_type, drop=drop)
        scheme = infer_scheme(splits["train"], column, problem_type)
    else:
        scheme = LabelScheme.of_checkpoint(from_checkpoint(AutoConfig, checkpoint))
        if "validation" in splits:
            column = find_label_column(splits["validation"], given, "validation")
        else:
            usual = [given] if given else ["label", "labels"]
            column = next((name for name in usual if name in splits["test"].column_names), usual[0])
    return replace(scheme, column=column)


def _encoded(dataset: Dataset, split: str, scheme: LabelScheme, arguments: DataArguments) -> Dataset:
    """Return the split with its labels in the column `labels`; without that column if a test split has no labels."""
    column = str(scheme.column)
    if split == "test" and not has_labels(dataset, column, scheme):
        return dataset.remove_columns([name for name in {column, "labels"} if name in dataset.column_names])
    find_label_column(dataset, column, split)
    dataset = labelled(dataset, column, split, scheme, drop=arguments.drop_unlabelled)
    return encode_labels(dataset, column, scheme, split)


def _load_needed(
    arguments: ExampleArguments,
    args: Any,
    folders: Mapping[str, str | None] | None = None,
    drop_unlabelled: bool = False,
) -> DatasetDict:
    """Return the splits that are needed for what `args` ask to do, with all of their examples."""
    splits = load_splits(arguments, folders, drop_unlabelled)
    percentage = arguments.validation_split_percentage
    needed = {"train": args.do_train, "validation": args.do_eval or args.eval_on_start, "test": args.do_predict}
    if percentage is not None:
        if not args.do_train:
            raise UsageError(f"validation_split_percentage={percentage} cuts the training examples: it needs do_train")
        needed["validation"] = False
    if not any(needed.values()):
        raise UsageError("nothing to do: give do_train, do_eval or do_predict")
    if args.sharpness_every_eval and not args.do_train:
        raise UsageError("sharpness_every_eval measures the loss of the training examples: give do_train too")
    for split, is_needed in needed.items():
        if is_needed and split not in splits:
            raise UsageError(f"there is no {split} split: the data have {', '.join(splits)}")
    for split in [split for split in splits if not needed.get(split)]:
        del splits[split]
    return splits


def _limited(splits: DatasetDict, arguments: ExampleArguments) -> DatasetDict:
    """Cut validation examples off from the training examples if asked for, and keep at most so many of each split."""
    limits = {
        "train": arguments.max_train_samples,
        "validation": arguments.max_eval_samples,
        "test": arguments.max_predict_samples,
    }
    percentage = arguments.validation_split_percentage
    for split, limit in limits.items():
        if split == "test" and split in splits and limit is not None:
            # The first ones: predictions.csv names examples by their row
            splits[split] = splits[split].select(range(min(limit, len(splits[split]))))
        elif split in splits:
            splits[split] = random_sample(splits[split], limit)
        if split == "train" and percentage is not None:
            size = len(splits["train"])
            try:
                # Not the seed of random_sample: the order that it leaves must have no influence on this choice
                parts = splits["train"].train_test_split(test_size=round(size * percentage / 100), seed=1)
            except ValueError:
                given = f"validation_split_percentage={percentage} of {size} training examples"
                raise UsageError(f"{given} leaves none for training or none for validation") from None
            splits["train"], splits["validation"] = parts["train"], parts["test"]
    return splits


def random_sample(dataset: Dataset, limit: int | None) -> Dataset:
    """Return at most `limit` examples, the same in every run. The first rows might all be of one class."""
    if limit is None or limit >= len(dataset):
        return dataset
    return dataset.shuffle(seed=0).select(range(limit)).flatten_indices()


def _load_named(name: str, configuration: str | None) -> DatasetDict:
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    from .demo import is_demo, load_demo_dataset

    if is_demo(name):
        return load_demo_dataset(name)
    if any((Path(name) / file).is_file() for file in ("dataset_dict.json", "state.json")):
        try:
            saved = load_from_disk(name)
        except Exception as error:  # of Arrow, datasets or json
            raise UsageError(f"the data set in the folder {name} cannot be read: {error}") from error
        return DatasetDict({"train": saved}) if isinstance(saved, Dataset) else saved
    if name.startswith((".", "/", "~")) and not Path(name).exists():
        raise UsageError(f"dataset_name={name}: the folder does not exist")
    try:
        return DatasetDict(load_dataset(name, configuration))
    except Exception as error:  # of datasets or the Hub client
        raise UsageError(f"the data set {name} cannot be loaded: {error}") from error

"""The examples that `sam-hf sharpness` measures on: drawn once, then labelled and batched for each model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from transformers import AutoImageProcessor, AutoTokenizer, DataCollatorWithPadding, default_data_collator

from ...errors import UsageError
from ...inputs.checkpoints import from_checkpoint
from ...inputs.labels import (
    MULTI_LABEL,
    REGRESSION,
    SINGLE_LABEL,
    LabelScheme,
    add_label_noise,
    encode_labels,
    find_label_column,
    infer_scheme,
    labelled,
)
from ...inputs.options import ExampleArguments
from ...inputs.splits import load_splits, random_sample, without_progress_bars
from ...inputs.texts import check_texts, text_columns, tokenize_texts
from .models import Checkpoint

if TYPE_CHECKING:
    from datasets import Dataset

    from .options import MeasuredExamples


@dataclass
class Examples:
    """
    Attributes:
        dataset (`Dataset`): the examples in random order, with labels in the data's order of classes.
        scheme (`LabelScheme`): describes these labels.
        replaced (`int`): how many labels of the whole training split were replaced by noise.
        columns (`list[str]`): the one or two columns of text, or the column of images.
    """

    dataset: Dataset
    scheme: LabelScheme
    replaced: int
    columns: list[str]


@without_progress_bars()
def load_examples(data: MeasuredExamples, config: Any, kind: str, seed: int) -> Examples:
    """
    Draw the examples.

    Args:
        data (`MeasuredExamples`): where the examples come from.
        config ([`~transformers.PretrainedConfig`]): configuration of the first model, for the problem type.
        kind (`str`): `"text"` or `"image"`.
        seed (`int`): seed of the sample.
    """
    dataset, split = _split(data, kind), data.split
    column = find_label_column(dataset, data.label_column, split)
    # In the order of a training run, so that the same examples are drawn and the same labels are replaced
    dataset = labelled(dataset, column, split, problem_type=data.problem_type, drop=data.drop_unlabelled)
    scheme = infer_scheme(dataset, column, data.problem_type or config.problem_type, split)
    if kind == "image" and scheme.problem_type != SINGLE_LABEL:
        raise UsageError(f"labels of images must be classes: these make a {scheme.problem_type}")
    dataset = encode_labels(dataset, column, scheme, split)
    if kind == "text":
        columns = text_columns(dataset, data.text_column, data.text_pair_column)
        check_texts({split: dataset}, columns)
    else:
        from ...inputs.images import check_images, encoded_images, find_image_column

        columns = [find_image_column(dataset, data.image_column)]
    dataset = random_sample(dataset, data.max_train_samples)
    dataset, replaced = add_label_noise(dataset, data.label_noise, scheme, data.label_noise_seed)
    drawn = dataset.shuffle(seed=seed).select(range(min(data.max_examples, len(dataset)))).flatten_indices()
    if kind == "image":
        drawn = encoded_images(drawn, columns[0])
        check_images(drawn, columns[0], split)
    return Examples(drawn, replace(scheme, column=column), replaced, columns)


def scheme_of(checkpoint: Checkpoint, data: LabelScheme) -> LabelScheme:
    """Return the scheme of the data's labels in the model's order of classes."""
    names, count = checkpoint.label_names, checkpoint.outputs(len(data.names))
    if data.problem_type != REGRESSION and names is not None:
        unknown = [name for name in data.names if name not in names]
        if unknown:
            raise UsageError(
                f"the data have the label {unknown[0]}, which {checkpoint.given} does not: it has {_list(names)}"
            )
        return LabelScheme(data.problem_type, names)
    if count != len(data.names):
        raise UsageError(
            f"{checkpoint.given} has {count} outputs, but the data have {len(data.names)} labels: {_list(data.names)}"
        )
    return data


def batches_for(
    checkpoint: Checkpoint,
    scheme: LabelScheme,
    examples: Examples,
    data: MeasuredExamples,
    size: int,
    share: Callable[[list[Any]], list[Any]],
) -> tuple[list[Any], list[Any]]:
    """
    Return the examples as the inputs of a model.

    Args:
        checkpoint (`Checkpoint`): the model.
        scheme (`LabelScheme`): what `scheme_of` returned for the model.
        examples (`Examples`): what `load_examples` returned.
        data (`MeasuredExamples`): names the columns, and limits the length of texts and the size of images.
        size (`int`): examples per batch.
        share (`Callable`): returns the part of a list that belongs to this process.

    Returns:
        `tuple[list, list]`: batches of texts of similar length, which have little padding, for means over all
        examples; and batches in random order, for measurements on groups of examples. For images both are one list.
    """
    dataset = _reordered(examples.dataset, examples.scheme, scheme)
    if checkpoint.kind == "image":
        batches = _image_batches(checkpoint, dataset, examples.columns[0], data.image_size, size, share)
        return batches, batches
    tokenizer = from_checkpoint(AutoTokenizer, checkpoint.path)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    rows = list(tokenize_texts(dataset, tokenizer, examples.columns, data.max_seq_length))
    collate = DataCollatorWithPadding(tokenizer)
    by_length = sorted(rows, key=lambda row: len(row["input_ids"]))
    return _batched(share(by_length), size, collate), _batched(share(rows), size, collate)


def _image_batches(
    checkpoint: Checkpoint,
    dataset: Dataset,
    column: str,
    image_size: int | None,
    size: int,
    share: Callable[[list[Any]], list[Any]],
) -> list[Any]:
    from ...inputs.image_format import ImageFormat
    from ...inputs.images import ImageTransform

    processor = from_checkpoint(AutoImageProcessor, checkpoint.path if not checkpoint.is_adapter else checkpoint.base)
    image_format = ImageFormat.of(processor, checkpoint.config, image_size)
    transformed = dataset.with_transform(ImageTransform(image_format, column, label_column="labels"))
    indices = share(list(range(len(transformed))))
    return _batched([transformed[index] for index in indices], size, default_data_collator)


def _batched(rows: Sequence[Any], size: int, collate: Callable[[Any], Any]) -> list[Any]:
    return [dict(collate(list(rows[start : start + size]))) for start in range(0, len(rows), size)]


def _split(data: MeasuredExamples, kind: str) -> Dataset:
    folders = {"train": data.train_dir, "validation": data.validation_dir, "test": data.test_dir}
    given = {split: folder for split, folder in folders.items() if folder is not None}
    if given and kind == "text":
        raise UsageError(f"{next(iter(given))}_dir is a folder of images, but the model takes text")
    names = ("dataset_name", "dataset_config_name", "train_file", "validation_file", "test_file")
    arguments = ExampleArguments(**{name: getattr(data, name) for name in names})
    splits = load_splits(arguments, folders, data.drop_unlabelled)
    if data.split not in splits:
        raise UsageError(f"there is no {data.split} split: the data have {', '.join(splits)}")
    return splits[data.split]


def _reordered(dataset: Dataset, data: LabelScheme, model: LabelScheme) -> Dataset:
    """Change the labels from the data's order of classes to the model's order."""
    if data.names == model.names or data.problem_type == REGRESSION:
        return dataset
    new_index = [model.names.index(name) for name in data.names]

    def relabelled(label: Any) -> Any:
        if data.problem_type != MULTI_LABEL:
            return new_index[label]
        row = [0.0] * len(model.names)
        for index, value in zip(new_index, label, strict=True):
            row[index] = value
        return row

    return dataset.map(lambda row: {"labels": relabelled(row["labels"])})


def _list(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

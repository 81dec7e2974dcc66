"""The columns of text in a data set, and their tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .columns import is_text, listed, type_of
from .files import is_csv

if TYPE_CHECKING:
    from datasets import Dataset

# The columns that are taken without being named. Two texts are a pair only in the columns of GLUE's tasks
PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
)
SINGLE = ("text", "sentence", "review")
_IDS = ("id", "idx", "guid", "index")


def columns_of_text(dataset: Dataset) -> list[str]:
    """Return the columns of strings in their order, without ids and, in a CSV file, without numbers."""
    texts = [name for name, feature in dataset.features.items() if is_text(feature) and name.lower() not in _IDS]
    return [name for name in texts if not _holds_numbers(dataset, name)]


def text_columns(dataset: Dataset, text: str | None = None, pair: str | None = None) -> list[str]:
    """
    Return the one or two columns of text: those given; by default a pair of GLUE's columns, then `text`, `sentence` or
    `review`, then the only column of strings that is left when ids and numbers are put aside.

    Args:
        dataset (`Dataset`): the examples, with their labels in `labels`.
        text (`str`, *optional*): name of the first column.
        pair (`str`, *optional*): name of the second column.

    Raises:
        UsageError: a column does not exist, or which column holds the text cannot be told.
    """
    names = [name for name in dataset.column_names if name != "labels"]
    if pair is not None and text is None:
        raise UsageError(f"text_pair_column={pair} was given without text_column: name both columns of the pair")
    if text is not None:
        columns = [name for name in (text, pair) if name is not None]
        for name in columns:
            if name not in names:
                raise UsageError(f"no column {name} besides the labels: the columns are {listed(names)}")
        return columns
    texts = {name.lower(): name for name, feature in dataset.features.items() if is_text(feature)}
    for usual in PAIRS:
        if all(name in texts for name in usual):
            return [texts[name] for name in usual]
    for usual_name in SINGLE:
        if usual_name in texts:
            return [texts[usual_name]]
    rest = columns_of_text(dataset)
    if len(rest) == 1:
        return rest
    raise UsageError(f"name text_column (and text_pair_column for a pair): the columns are {listed(names)}")


def check_texts(splits: Mapping[str, Dataset], columns: Sequence[str]) -> None:
    """Check that every example of every split has a text in `columns`, and raise `UsageError` otherwise."""
    for split, dataset in splits.items():
        for name in columns:
            if name not in dataset.column_names:
                have = listed(dataset.column_names)
                raise UsageError(f"no column {name} in the {split} split: the columns are {have}")
            feature = dataset.features[name]
            if not is_text(feature):
                holds = type_of(feature)
                raise UsageError(f"the column {name} of the {split} split holds {holds}: it must hold texts")
            missing = sum(text is None for text in dataset[name])
            if missing:
                given = f"{missing} of {len(dataset)} examples without a text"
                raise UsageError(f"the column {name} of the {split} split has {given}")


def _holds_numbers(dataset: Dataset, name: str) -> bool:
    """Return whether a column of a CSV file holds only numbers, such as an index that pandas wrote."""
    if not is_csv(dataset):
        return False
    return all(value is None or value.strip().lstrip("+-").replace(".", "", 1).isdigit() for value in dataset[name])


def tokenize_texts(dataset: Dataset, tokenizer: Any, columns: Sequence[str], max_length: int) -> Dataset:
    """
    Return the inputs of a model and `labels`, without other columns.

    Args:
        dataset (`Dataset`): the examples, with their labels in `labels`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the tokenizer of the checkpoint.
        columns (`Sequence[str]`): the columns of text, see `text_columns`.
        max_length (`int`): longer texts are cut to this many tokens, and to the length that the model takes.
    """
    length = min(max_length, tokenizer.model_max_length)
    return dataset.map(
        lambda batch: tokenizer(*(batch[column] for column in columns), truncation=True, max_length=length),
        batched=True,
        remove_columns=[name for name in dataset.column_names if name != "labels"],
    )

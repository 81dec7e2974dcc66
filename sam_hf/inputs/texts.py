"""The columns of text in a data set, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset


def is_text(feature: Any) -> bool:
    """Return whether a column of the type `feature` holds strings."""
    return str(getattr(feature, "dtype", "")) in ("string", "large_string")


def text_columns(dataset: Dataset, text: str | None = None, pair: str | None = None) -> list[str]:
    """
    Return the one or two columns of text: those given, by default all columns of strings except ids.

    Args:
        dataset (`Dataset`): the examples, with their labels in `labels`.
        text (`str`, *optional*): name of the first column.
        pair (`str`, *optional*): name of the second column.
    """
    columns = [name for name in (text, pair) if name is not None]
    if not columns:
        ids = ("id", "idx", "guid")
        columns = [name for name, kind in dataset.features.items() if is_text(kind) and name.lower() not in ids]
    if not 1 <= len(columns) <= 2 or not set(columns) <= set(dataset.column_names):
        raise UsageError(f"name text_column (and text_pair_column): the columns are {', '.join(dataset.column_names)}")
    for name in columns:
        if None in dataset.unique(name):
            raise UsageError(f"the column {name} has examples without a text")
    return columns


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

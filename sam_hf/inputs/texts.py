"""Texts on their way into a model: their columns, and their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset


def text_columns(dataset: Dataset, text: str | None = None, pair: str | None = None) -> list[str]:
    """
    The one or two columns of text: those named, else the string columns beside the label and ids.

    Args:
        dataset (`Dataset`): with its labels in `labels`.
        text (`str`, *optional*): name of the first one.
        pair (`str`, *optional*): name of the second one.
    """
    given = [name for name in (text, pair) if name is not None]
    missing = [name for name in given if name not in dataset.column_names]
    strings = [
        name
        for name, feature in dataset.features.items()
        if str(getattr(feature, "dtype", "")) in ("string", "large_string")
        and name.lower() not in ("id", "idx", "guid")
    ]
    columns = given or strings
    empty = [name for name in columns if name in dataset.column_names and None in dataset.unique(name)]
    if empty:
        raise UsageError(f"the column {empty[0]} has examples without a text")
    if missing or not 1 <= len(columns) <= 2:
        raise UsageError(f"name text_column (and text_pair_column): the columns are {', '.join(dataset.column_names)}")
    return columns


def tokenized(dataset: Dataset, tokenizer: Any, columns: Sequence[str], max_length: int) -> Dataset:
    """
    The inputs of a model beside `labels`, nothing else.

    Args:
        dataset (`Dataset`): with its labels in `labels`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the checkpoint's.
        columns (`Sequence[str]`): of `text_columns`.
        max_length (`int`): longer texts are cut to this many tokens, and to what the model takes.
    """
    length = min(max_length, tokenizer.model_max_length)
    return dataset.map(
        lambda batch: tokenizer(*(batch[column] for column in columns), truncation=True, max_length=length),
        batched=True,
        remove_columns=[name for name in dataset.column_names if name != "labels"],
    )

"""Sentences with a tag for each word: loading them, and matching the tags of words with the tokens of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..metrics import load_metric
from .checkpoints import from_checkpoint
from .labels import LabelScheme, find_column, infer_scheme, label_outputs
from .splits import load_examples, without_progress_bars
from .texts import is_text

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from .options import ExampleArguments

IGNORED = -100
_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels", "pos_tags")


@without_progress_bars()
def load_tagged(
    arguments: ExampleArguments, args: Any, checkpoint: str, words: str | None = None, tags: str | None = None
) -> tuple[DatasetDict, list[str]]:
    """
    Return the splits that a run needs, with the columns `words` and `tags` (numbers). The test split may lack `tags`.

    Args:
        arguments (`ExampleArguments`): where the examples come from.
        args ([`~transformers.TrainingArguments`]): which of training, evaluation and prediction are to be done.
        checkpoint (`str`): the model, whose tags are used if there is no training split.
        words (`str`, *optional*): the column of words; by default the first that exists of `tokens` and `words`.
        tags (`str`, *optional*): the column of tags; by default the first that exists of `ner_tags`, `tags`, `labels`
            and `pos_tags`.

    Returns:
        `tuple[DatasetDict, list[str]]`: splits and names of the tags.
    """
    from datasets import Dataset, concatenate_datasets
    from transformers import AutoConfig

    splits = load_examples(arguments, args)
    for split, dataset in splits.items():
        splits[split] = _lists(dataset, find_column(dataset, words, _WORDS), "words")
        if split == "test" and not any(name in dataset.column_names for name in ([tags] if tags else _TAGS)):
            continue
        parts = [splits[split], _lists(dataset, find_column(dataset, tags, _TAGS), "tags")]
        splits[split] = concatenate_datasets(parts, axis=1)
        for i, row in enumerate(splits[split]):
            if len(row["words"]) != len(row["tags"]):
                counts = f"{len(row['words'])} words and {len(row['tags'])} tags"
                raise UsageError(f"example {i} of the {split} split has {counts}")
    if "train" in splits:
        names = infer_scheme(splits["train"], "tags").names
    else:
        names = LabelScheme.of_checkpoint(from_checkpoint(AutoConfig, checkpoint)).names
    for split, dataset in splits.items():
        if "tags" in dataset.column_names:
            output_of = label_outputs(dataset.features["tags"], names, split)
            numbers = [[output_of(tag) for tag in row] for row in dataset["tags"]]
            splits[split] = Dataset.from_dict({"words": dataset["words"], "tags": numbers})
    return splits, names


def _lists(dataset: Dataset, column: str, name: str) -> Dataset:
    """Return only the lists in `column`, under the name `name`. Texts are split at white space."""
    from datasets import Dataset

    values, feature = dataset[column][:], dataset.features[column]
    if any(value is None for value in values):
        raise UsageError(f"the column {column} has examples without {name}")
    if is_text(feature):
        return Dataset.from_dict({name: [value.split() for value in values]})
    if not hasattr(feature, "feature"):
        raise UsageError(f"the column {column} holds {feature}: it must hold lists, or texts")
    selected = dataset.select_columns(column)
    return selected if column == name else selected.rename_column(column, name)


def tokenize_words(batch: dict[str, Any], tokenizer: Any, length: int) -> dict[str, list[Any]]:
    """
    Return the model's inputs for a batch of `load_tagged`. The first token of a word has the word's tag as its label,
    and no other token has one. `first_tokens` holds the position of this token for each word, and −1 for a word that
    was cut off or has no token.
    """
    encoded = tokenizer(batch["words"], is_split_into_words=True, truncation=True, max_length=length)
    columns: dict[str, list[Any]] = {**encoded, "first_tokens": []}
    for i, words in enumerate(batch["words"]):
        first = [-1] * len(words)
        for token, word in reversed(list(enumerate(encoded.word_ids(i)))):
            if word is not None:
                first[word] = token
        columns["first_tokens"].append(first)
    if "tags" in batch:
        columns["labels"] = [[IGNORED] * len(ids) for ids in encoded["input_ids"]]
        for labels, first, tags in zip(columns["labels"], columns["first_tokens"], batch["tags"], strict=True):
            for token, tag in zip(first, tags, strict=True):
                if token >= 0:
                    labels[token] = tag
    return columns


def tags_of_words(scores: Any, first_tokens: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """Return the predicted tags of each sentence as a text, with `-` for a word that the model did not see."""
    best = scores.argmax(-1)
    return [
        " ".join("-" if token < 0 else names[best[i, token]] for token in first)
        for i, first in enumerate(first_tokens)
    ]


def tag_metrics_function(names: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """
    Return a `compute_metrics` for Trainer. It measures whole entities if every name is O or has a prefix such as B-,
    otherwise accuracy and macro F1 of the tags.
    """
    has_entities = all(name == "O" or name[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") for name in names)
    metric = load_metric("entities" if has_entities else "classification")

    def compute_metrics(prediction: Any) -> dict[str, float]:
        best, labels = prediction.predictions.argmax(-1), prediction.label_ids
        seen = labels != IGNORED
        if not has_entities:
            return metric.compute(predictions=best[seen], references=labels[seen])

        def names_in(rows: Any) -> list[list[str]]:
            return [[names[tag] for tag in row[mask]] for row, mask in zip(rows, seen, strict=True)]

        return metric.compute(predictions=names_in(best), references=names_in(labels))

    return compute_metrics

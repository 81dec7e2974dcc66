"""Sentences with a tag for each word: loading them, and what the tokens of a word have to do with its tag."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..metrics import load_metric
from .checkpoints import from_checkpoint
from .labels import LabelScheme, infer_scheme, positions
from .splits import load_examples, without_progress_bars

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
    The splits a run needs, with the column `words`, and `tags` as numbers, which examples to predict may lack.

    Args:
        arguments (`ExampleArguments`): where the examples come from.
        args ([`~transformers.TrainingArguments`]): what is to be done.
        checkpoint (`str`): the model, whose tags hold where there is no training split.
        words (`str`, *optional*): the column with the words; by default the first there is of `tokens` and `words`.
        tags (`str`, *optional*): likewise of `ner_tags`, `tags`, `labels` and `pos_tags`.

    Returns:
        `tuple[DatasetDict, list[str]]`: splits and names of the tags.
    """
    from datasets import Dataset
    from transformers import AutoConfig

    splits = load_examples(arguments, args)
    tagged = {}
    for split, dataset in splits.items():
        sentences = _rows(dataset, _column(dataset, words, _WORDS), "words")
        if split == "test" and not any(name in dataset.column_names for name in ([tags] if tags else _TAGS)):
            splits[split] = sentences
            continue
        splits[split] = tagged[split] = _rows(dataset, _column(dataset, tags, _TAGS), "tags")
        splits[split] = splits[split].add_column("words", sentences["words"])
        _check_lengths(splits[split], split)
    if "train" in splits:
        names = infer_scheme(tagged["train"], "tags").names
    else:
        names = LabelScheme.of_checkpoint(from_checkpoint(AutoConfig, checkpoint)).names
    for split, dataset in tagged.items():
        position = positions(dataset.features["tags"], names, split)
        numbers = [[position(tag) for tag in row] for row in dataset["tags"]]
        splits[split] = Dataset.from_dict({"words": splits[split]["words"], "tags": numbers})
    return splits, names


def tokenized(batch: dict[str, Any], tokenizer: Any, length: int) -> dict[str, list[Any]]:
    """
    What the model takes of a batch of `load_tagged`: a word's tag is the label of its first token, no other token has
    one. `first_tokens` says where that is for each word, −1 for one that was cut off or has no token at all.
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
    """The predicted tags of each sentence as a text, with `-` for a word that the model did not see."""
    best = scores.argmax(-1)
    return [
        " ".join("-" if token < 0 else names[best[i, token]] for token in first)
        for i, first in enumerate(first_tokens)
    ]


def tag_metrics_function(names: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """
    A `compute_metrics` for Trainer: of whole entities where every name is O or has a prefix as B-, else accuracy and
    macro F1 of the tags.
    """
    of_entities = all(name == "O" or name[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") for name in names)
    metric = load_metric("entities" if of_entities else "classification")

    def compute_metrics(prediction: Any) -> dict[str, float]:
        best, labels = prediction.predictions.argmax(-1), prediction.label_ids
        seen = labels != IGNORED
        if not of_entities:
            return metric.compute(predictions=best[seen], references=labels[seen])

        def named(rows: Any) -> list[list[str]]:
            return [[names[tag] for tag in row[mask]] for row, mask in zip(rows, seen, strict=True)]

        return metric.compute(predictions=named(best), references=named(labels))

    return compute_metrics


def _column(dataset: Dataset, given: str | None, usual: Sequence[str]) -> str:
    candidates = [given] if given else usual
    for name in candidates:
        if name in dataset.column_names:
            return name
    raise UsageError(f"no column {' or '.join(candidates)}: the columns are {', '.join(dataset.column_names)}")


def _rows(dataset: Dataset, column: str, name: str) -> Dataset:
    """That column alone, with texts split at white space."""
    from datasets import Dataset

    values = dataset[column]
    if any(value is None for value in values):
        raise UsageError(f"the column {column} has examples without {name}")
    if str(getattr(dataset.features[column], "dtype", "")) in ("string", "large_string"):
        return Dataset.from_dict({name: [value.split() for value in values]})
    if not hasattr(dataset.features[column], "feature"):
        raise UsageError(f"the column {column} holds {dataset.features[column]}: it must hold lists, or texts")
    alone = dataset.select_columns(column)
    return alone if column == name else alone.rename_column(column, name)


def _check_lengths(dataset: Dataset, split: str) -> None:
    for i, (words, tags) in enumerate(zip(dataset["words"], dataset["tags"], strict=True)):
        if len(words) != len(tags):
            raise UsageError(f"example {i} of the {split} split has {len(words)} words and {len(tags)} tags")

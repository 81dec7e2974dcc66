"""Sentences with a tag for each word: loading them, and matching the tags of words with the tokens of the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..metrics import load_metric
from .checkpoints import from_checkpoint
from .columns import find_column, is_text, type_of
from .label_values import UNLABELLED, sorted_names
from .labels import SINGLE_LABEL, LabelScheme, say_columns
from .splits import load_examples, without_progress_bars

if TYPE_CHECKING:
    from datasets import Dataset, DatasetDict

    from .options import ExampleArguments

IGNORED = -100
_WORDS = ("tokens", "words")
_TAGS = ("ner_tags", "tags", "labels", "pos_tags")


@without_progress_bars()
def load_tagged(
    arguments: ExampleArguments,
    args: Any,
    checkpoint: str,
    words: str | None = None,
    tags: str | None = None,
    drop_unlabelled: bool = False,
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
        drop_unlabelled (`bool`, *optional*, defaults to `False`): words may have no tag (nothing, −1 or −100). They
            are read by the model, and do not count in loss and metrics.

    Returns:
        `tuple[DatasetDict, list[str]]`: splits and names of the tags.
    """
    from datasets import Dataset
    from transformers import AutoConfig

    splits = load_examples(arguments, args)
    named: dict[str, list[list[str | None]]] = {}
    all_words, names, read = {}, None, {}
    for split, dataset in splits.items():
        read["words"] = find_column(dataset, words, _WORDS, split, "words_column")
        all_words[split] = _words(dataset, read["words"], split)
        if split == "test" and not any(name in dataset.column_names for name in ([tags] if tags else _TAGS)):
            continue
        column = read["tags"] = find_column(dataset, tags, _TAGS, split, "tags_column")
        named[split], declared = _named_tags(dataset, column, split)
        names = declared if split == "train" and declared else names
        for i, (row, tagged) in enumerate(zip(all_words[split], named[split], strict=True)):
            if len(row) != len(tagged):
                counts = f"{len(row)} words and {len(tagged)} tags"
                raise UsageError(f"example {i} of the {split} split has {counts}")
        if split == "test" and all(tag is None for row in named[split] for tag in row):
            del named[split]
        elif not drop_unlabelled:
            _check_all_tagged(named[split], column, split)
    if "train" not in splits:
        names = LabelScheme.of_checkpoint(from_checkpoint(AutoConfig, checkpoint)).names
    elif names is None:
        names = sorted_names({tag for row in named["train"] for tag in row if tag is not None})
    say_columns(args, "words", [read["words"]], LabelScheme(SINGLE_LABEL, names, column=read.get("tags", "none")))
    outputs: dict[str | None, int] = {name: i for i, name in enumerate(names)} | {None: IGNORED}
    for split in splits:
        columns: dict[str, list[Any]] = {"words": all_words[split]}
        if split in named:
            unknown = next((tag for row in named[split] for tag in row if tag not in outputs), None)
            if unknown is not None:
                raise UsageError(f"the {split} split has the tag {unknown}, which no training example has")
            columns["tags"] = [[outputs[tag] for tag in row] for row in named[split]]
        splits[split] = Dataset.from_dict(columns)
    return splits, names


def _words(dataset: Dataset, column: str, split: str) -> list[list[str]]:
    """Return the words of each example. Texts are split at white space."""
    sentences = _lists(dataset, column, split, "words")
    for i, row in enumerate(sentences):
        if not all(isinstance(word, str) for word in row):
            raise UsageError(f"the column {column} of the {split} split holds a word that is no text, in example {i}")
    return sentences


def _named_tags(dataset: Dataset, column: str, split: str) -> tuple[list[list[str | None]], list[str] | None]:
    """Return the names of the tags of each example (`None` for a word without a tag), and those of a ClassLabel."""
    rows = _lists(dataset, column, split, "tags")
    feature = dataset.features[column]
    class_names = getattr(getattr(feature, "feature", None), "names", None)

    def name(tag: Any, row: int) -> str | None:
        if tag is None or tag in (IGNORED, UNLABELLED):
            return None
        if class_names is None:
            return str(tag)
        if not 0 <= tag < len(class_names):
            allowed = f"tags are numbered from 0 to {len(class_names) - 1}"
            raise UsageError(f"the column {column} of the {split} split holds {tag} in example {row}: {allowed}")
        return class_names[tag]

    if not is_text(feature) and not hasattr(getattr(feature, "feature", None), "dtype"):
        raise UsageError(f"the column {column} of the {split} split holds {type_of(feature)}: it must hold tags")
    return [[name(tag, i) for tag in row] for i, row in enumerate(rows)], class_names


def _check_all_tagged(rows: Sequence[Sequence[str | None]], column: str, split: str) -> None:
    counts = [sum(tag is None for tag in row) for row in rows]
    if sum(counts):
        given = f"{sum(counts)} words without a tag (nothing, -1 or -100), in {sum(map(bool, counts))} examples"
        raise UsageError(
            f"the column {column} of the {split} split has {given}: give drop_unlabelled to leave them out of the loss"
        )


def _lists(dataset: Dataset, column: str, split: str, what: str) -> list[list[Any]]:
    """Return the lists in a column. Texts are split at white space."""
    values, feature = dataset[column][:], dataset.features[column]
    if not is_text(feature) and not hasattr(feature, "feature"):
        holds = type_of(feature)
        raise UsageError(f"the column {column} of the {split} split holds {holds}: it must hold lists, or texts")
    missing = sum(value is None for value in values)
    if missing:
        raise UsageError(f"the column {column} of the {split} split has {missing} examples without {what}")
    return [value.split() for value in values] if is_text(feature) else values


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


def are_entities(names: Sequence[str]) -> bool:
    """Return whether the tags mark entities: every name is O or has a prefix such as B-."""
    return all(name == "O" or name[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") for name in names)


def tag_metrics_function(names: Sequence[str]) -> Callable[[Any], dict[str, float]]:
    """
    Return a `compute_metrics` for Trainer. It measures whole entities if the tags mark them, otherwise accuracy and
    macro F1 of the tags.
    """
    has_entities = are_entities(names)
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

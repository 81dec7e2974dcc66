"""The label scheme of a data set, and symmetric noise on training labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

REGRESSION = "regression"
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


@dataclass(frozen=True)
class LabelScheme:
    """What the labels are: transformers' problem type, and the names in the order of the model's outputs."""

    problem_type: str
    names: list[str]

    @classmethod
    def of_checkpoint(cls, config: Any) -> LabelScheme:
        """The scheme that a finetuned checkpoint was trained with, for runs that only evaluate or predict."""
        names = [config.id2label[i] for i in range(config.num_labels)]
        return cls(config.problem_type or (REGRESSION if len(names) == 1 else SINGLE_LABEL), names)


def find_label_column(dataset: Dataset, given: str | None) -> str:
    for column in [given] if given else ["label", "labels"]:
        if column in dataset.column_names:
            return column
    raise UsageError(
        f"no label column {given or 'label or labels'}: the columns are {', '.join(dataset.column_names)}"
    )


def has_labels(dataset: Dataset, column: str, scheme: LabelScheme) -> bool:
    """Whether examples to predict come with labels; test sets of classes on the Hub often hold −1 or nothing."""
    missing = (None,) if scheme.problem_type == REGRESSION else (None, -1)
    return column in dataset.column_names and all(value not in missing for value in _values(dataset, column))


def infer_scheme(dataset: Dataset, column: str, problem_type: str | None = None) -> LabelScheme:
    """
    Float labels make a regression, lists a multi-label problem, all others single-label classes, named by ClassLabel
    or the sorted labels of `dataset`.

    Args:
        problem_type (`str`, *optional*): what the labels are, where their type does not say it.
    """
    feature = dataset.features[column]
    values = _values(dataset, column)
    if any(value is None for value in values):
        raise UsageError(f"the column {column} has examples without a label")
    is_list = hasattr(feature, "feature")
    dtype = str(getattr(feature.feature if is_list else feature, "dtype", ""))
    if not dtype.startswith(("int", "uint", "string", "large_string", "bool", "float")):
        raise UsageError(f"the column {column} holds {feature}: labels must be classes, lists of classes or numbers")
    natural = MULTI_LABEL if is_list else REGRESSION if dtype.startswith("float") else SINGLE_LABEL
    wanted = problem_type or natural
    if is_list != (wanted == MULTI_LABEL) or (wanted == REGRESSION and "string" in dtype):
        raise UsageError(f"problem_type={wanted} does not fit the column {column}, which holds {feature}")
    if wanted == REGRESSION:
        return LabelScheme(wanted, [column])
    classes = feature.feature if is_list else feature
    if hasattr(classes, "names"):
        return LabelScheme(wanted, list(classes.names))
    seen = {label for value in values for label in value} if is_list else set(values)
    return LabelScheme(wanted, [str(label) for label in sorted(seen)])


def encode(dataset: Dataset, column: str, scheme: LabelScheme, split: str) -> Dataset:
    """`dataset` with its labels as the model takes them, in the column `labels`."""
    from datasets import List, Value

    values = _values(dataset, column)
    kind: Any = Value("float32")
    if scheme.problem_type != REGRESSION:
        position = positions(dataset.features[column], scheme.names, split)
        if scheme.problem_type == SINGLE_LABEL:
            values, kind = [position(label) for label in values], Value("int64")
        else:
            rows = [{position(label) for label in value} for value in values]
            values = [[float(i in row) for i in range(len(scheme.names))] for row in rows]
            kind = List(Value("float32"))
    return dataset.remove_columns(column).add_column("labels", values).cast_column("labels", kind)


def positions(feature: Any, names: Sequence[str], split: str) -> Callable[[Any], int]:
    """From a label of a column, or in its lists, to the model's output for it; `feature` is the column's type."""
    classes = getattr(feature, "feature", feature)
    index = {name: i for i, name in enumerate(names)}

    def position(label: Any) -> int:
        name = classes.names[label] if hasattr(classes, "names") else str(label)
        if name not in index:
            raise UsageError(f"the {split} split has the label {name}, which training never sees")
        return index[name]

    return position


def add_label_noise(
    dataset: Dataset, rate: float, scheme: LabelScheme, seed: int | tuple[int, ...]
) -> tuple[Dataset, int]:
    """
    Symmetric noise, for the experiment of section 3.3 of arXiv 2010.01412: exactly round(rate·n) of the encoded
    `labels` are replaced, each by another class drawn uniformly. (Where a replaced label may be drawn as it was, as in
    some of the literature, fewer are wrong.) The same seed gives the same noise.

    Returns:
        `tuple[Dataset, int]`: the data set and the number of labels replaced.
    """
    if rate == 0:
        return dataset, 0
    classes = len(scheme.names)
    if scheme.problem_type != SINGLE_LABEL or classes < 2:
        raise UsageError(f"label_noise={rate} needs single-label classification with two classes or more")
    generator = np.random.default_rng(seed)
    labels = np.array(_values(dataset, "labels"))
    chosen = generator.choice(len(labels), size=round(rate * len(labels)), replace=False)
    labels[chosen] = (labels[chosen] + generator.integers(1, classes, size=len(chosen))) % classes
    return dataset.remove_columns("labels").add_column("labels", labels), len(chosen)


def _values(dataset: Dataset, column: str) -> list[Any]:
    return list(dataset.select_columns([column])[:][column])

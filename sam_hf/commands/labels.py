"""The label scheme of a data set, and symmetric noise on training labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .cli import UsageError

if TYPE_CHECKING:
    from datasets import Dataset


@dataclass(frozen=True)
class LabelScheme:
    """What the labels are: transformers' problem type, and the names in the order of the model's outputs."""

    problem_type: str
    names: list[str]


def find_label_column(dataset: Dataset, given: str | None) -> str:
    for column in [given] if given else ["label", "labels"]:
        if column in dataset.column_names:
            return column
    raise UsageError(
        f"no label column {given or 'label or labels'}: the columns are {', '.join(dataset.column_names)}"
    )


def infer_scheme(dataset: Dataset, column: str) -> LabelScheme:
    """Float labels: regression; others: single-label, named by ClassLabel or the sorted training labels."""
    feature = dataset.features[column]
    if hasattr(feature, "names"):
        return LabelScheme("single_label_classification", list(feature.names))
    dtype = str(getattr(feature, "dtype", ""))
    if dtype.startswith("float"):
        return LabelScheme("regression", [column])
    if not dtype.startswith(("int", "uint", "string", "large_string", "bool")):
        raise UsageError(f"labels of {feature} in the column {column}: they must be classes or numbers")
    values = set(dataset[column])
    if None in values:
        raise UsageError(f"the column {column} has examples without a label")
    return LabelScheme("single_label_classification", [str(value) for value in sorted(values)])


def encode(dataset: Dataset, column: str, scheme: LabelScheme, split: str) -> Dataset:
    """`dataset` with its labels as the model takes them, in the column `labels`."""
    from datasets import Value

    values: list[Any] = dataset[column][:] if not isinstance(dataset[column], list) else dataset[column]
    kind = Value("float32")
    if scheme.problem_type == "single_label_classification":
        kind = Value("int64")
        if not hasattr(dataset.features[column], "names"):
            index = {name: i for i, name in enumerate(scheme.names)}
            unseen = sorted({str(value) for value in values} - set(index))
            if unseen:
                raise UsageError(f"labels of the {split} split that training never sees: {', '.join(unseen[:5])}")
            values = [index[str(value)] for value in values]
    return dataset.remove_columns(column).add_column("labels", values).cast_column("labels", kind)


def add_label_noise(dataset: Dataset, rate: float, scheme: LabelScheme, seed: int) -> tuple[Dataset, int]:
    """
    Replace exactly round(rate·n) of the encoded `labels`, each by another class drawn uniformly; the same seed gives
    the same noise. Returns the data set and the number replaced.
    """
    if not 0 <= rate < 1:
        raise UsageError(f"label_noise={rate} is not allowed: it must be at least 0 and below 1")
    if rate == 0:
        return dataset, 0
    classes = len(scheme.names)
    if scheme.problem_type != "single_label_classification" or classes < 2:
        raise UsageError(f"label_noise={rate} needs single-label classification with two classes or more")
    generator = np.random.default_rng(seed)
    labels = np.array(dataset["labels"][:])
    chosen = generator.choice(len(labels), size=round(rate * len(labels)), replace=False)
    labels[chosen] = (labels[chosen] + generator.integers(1, classes, size=len(chosen))) % classes
    return dataset.remove_columns("labels").add_column("labels", labels), len(chosen)

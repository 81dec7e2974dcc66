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
    """The problem type of the labels, as transformers names it, and their names in the order of the outputs."""

    problem_type: str
    names: list[str]

    @classmethod
    def of_checkpoint(cls, config: Any) -> LabelScheme:
        """Return the scheme that a finetuned checkpoint was trained with, for runs that only evaluate or predict."""
        names = [config.id2label[i] for i in range(config.num_labels)]
        return cls(config.problem_type or (REGRESSION if len(names) == 1 else SINGLE_LABEL), names)


def find_column(dataset: Dataset, given: str | None, usual: Sequence[str] = ()) -> str:
    """Return `given`, by default the first of the `usual` names, if `dataset` has a column of that name."""
    candidates = [given] if given else usual
    for column in candidates:
        if column in dataset.column_names:
            return column
    raise UsageError(f"no column {' or '.join(candidates)}: the columns are {', '.join(dataset.column_names)}")


def find_label_column(dataset: Dataset, given: str | None) -> str:
    """Return `given`, by default `label` or `labels`, if `dataset` has a column of that name."""
    return find_column(dataset, given, ("label", "labels"))


def has_labels(dataset: Dataset, column: str, scheme: LabelScheme) -> bool:
    """Return whether the examples have labels. Test sets of classes on the Hub often contain only −1 or no labels."""
    missing = (None,) if scheme.problem_type == REGRESSION else (None, -1)
    return column in dataset.column_names and all(value not in missing for value in dataset[column][:])


def infer_scheme(dataset: Dataset, column: str, problem_type: str | None = None) -> LabelScheme:
    """
    Return the scheme that the type of the labels implies: regression for floats, multi-label for lists, single-label
    classes for all others. The names are those of ClassLabel, otherwise the sorted labels of `dataset`.

    Args:
        problem_type (`str`, *optional*): the problem type, where the type of the labels does not tell it.
    """
    feature = dataset.features[column]
    values = dataset[column][:]
    if any(value is None for value in values):
        raise UsageError(f"the column {column} has examples without a label")
    is_list = hasattr(feature, "feature")
    classes = feature.feature if is_list else feature
    dtype = str(getattr(classes, "dtype", ""))
    if not dtype.startswith(("int", "uint", "string", "large_string", "bool", "float")):
        raise UsageError(f"the column {column} holds {feature}: labels must be classes, lists of classes or numbers")
    implied = MULTI_LABEL if is_list else REGRESSION if dtype.startswith("float") else SINGLE_LABEL
    problem_type = problem_type or implied
    if is_list != (problem_type == MULTI_LABEL) or (problem_type == REGRESSION and "string" in dtype):
        raise UsageError(f"problem_type={problem_type} does not fit the column {column}, which holds {feature}")
    if problem_type == REGRESSION:
        return LabelScheme(problem_type, [column])
    if hasattr(classes, "names"):
        return LabelScheme(problem_type, list(classes.names))
    labels = {label for value in values for label in value} if is_list else set(values)
    return LabelScheme(problem_type, [str(label) for label in sorted(labels)])


def encode_labels(dataset: Dataset, column: str, scheme: LabelScheme, split: str) -> Dataset:
    """Return `dataset` with `column` replaced by the column `labels`, in the form that the model takes."""
    from datasets import List, Value

    values = dataset[column][:]
    kind: Any = Value("float32")
    if scheme.problem_type != REGRESSION:
        output_of = label_outputs(dataset.features[column], scheme.names, split)
        if scheme.problem_type == SINGLE_LABEL:
            values, kind = [output_of(label) for label in values], Value("int64")
        else:
            rows = [{output_of(label) for label in value} for value in values]
            values = [[float(i in row) for i in range(len(scheme.names))] for row in rows]
            kind = List(Value("float32"))
    return dataset.remove_columns(column).add_column("labels", values).cast_column("labels", kind)


def label_outputs(feature: Any, names: Sequence[str], split: str) -> Callable[[Any], int]:
    """Return a function that maps a label in a column (or in its lists) of type `feature` to the model's output."""
    classes = getattr(feature, "feature", feature)
    outputs = {name: i for i, name in enumerate(names)}

    def output_of(label: Any) -> int:
        name = classes.names[label] if hasattr(classes, "names") else str(label)
        if name not in outputs:
            raise UsageError(f"the {split} split has the label {name}, which no training example has")
        return outputs[name]

    return output_of


def add_label_noise(
    dataset: Dataset, rate: float, scheme: LabelScheme, seed: int | tuple[int, ...]
) -> tuple[Dataset, int]:
    """
    Add symmetric noise, for the experiment of section 3.3 of arXiv 2010.01412: replace exactly round(rate·n) of the
    encoded `labels`, each by another class drawn uniformly. (Some papers let a replaced label keep its class, so that
    fewer labels are wrong.) The same seed gives the same noise.

    Returns:
        `tuple[Dataset, int]`: the data set and the number of replaced labels.
    """
    if rate == 0:
        return dataset, 0
    classes = len(scheme.names)
    if scheme.problem_type != SINGLE_LABEL or classes < 2:
        raise UsageError(f"label_noise={rate} needs single-label classification with two classes or more")
    generator = np.random.default_rng(seed)
    labels = np.array(dataset["labels"][:])
    chosen = generator.choice(len(labels), size=round(rate * len(labels)), replace=False)
    labels[chosen] = (labels[chosen] + generator.integers(1, classes, size=len(chosen))) % classes
    return dataset.remove_columns("labels").add_column("labels", labels), len(chosen)

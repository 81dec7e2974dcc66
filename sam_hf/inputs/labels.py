"""The label scheme of a data set, and symmetric noise on training labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from transformers.utils import logging

from ..errors import UsageError
from .columns import find_column, listed, type_of
from .label_values import LabelValues, sorted_names

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.get_logger(__name__)

REGRESSION = "regression"
SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION)


@dataclass(frozen=True)
class LabelScheme:
    """
    What the labels are.

    Attributes:
        problem_type (`str`): the name that transformers has for it.
        names (`list[str]`): the names of the labels in the order of the outputs.
        is_vector (`bool` or `None`): for several labels an example, the data hold vectors of 0 and 1 instead of lists
            of names; `None` if that is not known.
        column (`str` or `None`): the column that they stand in.
    """

    problem_type: str
    names: list[str]
    is_vector: bool | None = field(default=None, compare=False)
    column: str | None = field(default=None, compare=False)

    @property
    def known_names(self) -> list[str]:
        """The names of the classes; none for a regression."""
        return [] if self.problem_type == REGRESSION else self.names

    @classmethod
    def of_checkpoint(cls, config: Any) -> LabelScheme:
        """Return the scheme that a finetuned checkpoint was trained with, for runs that only evaluate or predict."""
        names = [config.id2label[i] for i in range(config.num_labels)]
        return cls(config.problem_type or (REGRESSION if len(names) == 1 else SINGLE_LABEL), names)


def find_label_column(dataset: Dataset, given: str | None, split: str | None = None) -> str:
    """Return `given`, by default `label` or `labels`, if `dataset` has a column of that name."""
    return find_column(dataset, given, ("label", "labels"), split, "label_column")


def has_labels(dataset: Dataset, column: str, scheme: LabelScheme) -> bool:
    """
    Return whether all examples to predict have labels. Test sets of classes on the Hub often contain only −1. If some
    have labels and some have none, say that no metrics are computed.
    """
    if column not in dataset.column_names or str(getattr(dataset.features[column], "dtype", "")) == "null":
        return False
    values = LabelValues(dataset, column, "test")
    missing = len(values.unlabelled(scheme.known_names, scheme.problem_type))
    if 0 < missing < len(values.values):
        count = f"{missing} of {len(values.values)} examples have no label"
        logger.warning(f"{values}: {count}: the predictions of this split get no metrics.")
    return missing == 0


def labelled(
    dataset: Dataset,
    column: str,
    split: str,
    scheme: LabelScheme | None = None,
    problem_type: str | None = None,
    drop: bool = False,
) -> Dataset:
    """
    Return the examples that have a label.

    Args:
        scheme (`LabelScheme`, *optional*): the labels of the training examples; `None` for these examples themselves.
        problem_type (`str`, *optional*): what the user says that the labels are.
        drop (`bool`, *optional*, defaults to `False`): leave out the examples without a label.

    Raises:
        UsageError: examples have no label and `drop` is not set, or none has one.
    """
    values = LabelValues(dataset, column, split)
    known = None if scheme is None else scheme.known_names
    rows = values.unlabelled(known, problem_type or (None if scheme is None else scheme.problem_type))
    if not rows:
        return dataset
    total = len(dataset)
    if scheme is None and problem_type is None and values.are_whole_numbers():
        both = "problem_type=regression or problem_type=single_label_classification"
        why = "pandas writes classes so if a row has none"
        raise UsageError(f"{values} has whole numbers as fractions, and rows without a label: {why}: give {both}")
    if len(rows) == total:
        raise UsageError(f"{values}: none of the {total} examples has a label")
    if not drop:
        marks = sorted({str(values.values[row]) for row in rows})
        first = f"{len(rows)} of {total} examples have no label ({' or '.join(marks)}), first row {rows[0]}"
        as_class = ""
        if known is None and values.class_names is None and marks == ["-1"]:
            as_class = ", or problem_type=single_label_classification if -1 is a class"
        raise UsageError(f"{values}: {first}: give drop_unlabelled to leave them out{as_class}")
    without = set(rows)
    return dataset.select([row for row in range(total) if row not in without])


def infer_scheme(dataset: Dataset, column: str, problem_type: str | None = None, split: str = "train") -> LabelScheme:
    """
    Return the scheme that the type of the labels implies: regression for numbers with a fraction, multi-label for
    lists, single-label classes for all others. Lists hold names of classes, or are vectors of 0 and 1. The names are
    those of ClassLabel, otherwise the sorted labels of `dataset`, or the places in the vector.

    Args:
        dataset (`Dataset`): examples that all have a label, see [`labelled`].
        problem_type (`str`, *optional*): the problem type, where the type of the labels does not tell it.
    """
    values = LabelValues(dataset, column, split)
    if problem_type is None:
        values.check_is_told()
    implied = MULTI_LABEL if values.is_list else REGRESSION if values.are_numbers else SINGLE_LABEL
    problem_type = problem_type or implied
    if values.is_list != (problem_type == MULTI_LABEL):
        raise UsageError(f"problem_type={problem_type} does not fit {values}, which holds {type_of(values.feature)}")
    if problem_type == REGRESSION:
        values.numbers()
        return LabelScheme(problem_type, [column])
    is_vector = values.is_vector()
    if is_vector:
        size = len(values.vectors()[0])
        names = values.class_names or [str(place) for place in range(size)]
        if len(names) != size:
            raise UsageError(f"{values} holds vectors of {size} entries, and has {len(names)} names of classes")
        return LabelScheme(problem_type, names, is_vector)
    name_of = values.name_of()
    rows = [value if values.is_list else [value] for value in values.values]
    found = {name_of(label, row) for row, labels in enumerate(rows) for label in labels}
    if values.class_names is None:
        _check_spelling(found, values)
    return LabelScheme(problem_type, values.class_names or sorted_names(found), is_vector)


def _check_spelling(names: set[str], values: LabelValues) -> None:
    """Refuse classes that differ only in white space, and warn of those that differ only in upper and lower case."""
    for same, is_error in ((lambda name: name.strip(), True), (lambda name: name.strip().casefold(), False)):
        spellings: dict[str, str] = {}
        for name in sorted(names):
            other = spellings.setdefault(same(name), name)
            if other == name:
                continue
            if is_error:
                raise UsageError(f"{values} has the classes {other!r} and {name!r}, which differ only in white space")
            logger.warning(f"{values} has the classes {other!r} and {name!r}, which differ only in case.")
            return


def check_has_classes(dataset: Dataset, scheme: LabelScheme) -> None:
    """Refuse encoded training examples that all have the same class."""
    found = dataset.unique("labels") if scheme.problem_type == SINGLE_LABEL else []
    if len(found) == 1:
        raise UsageError(
            f"all training examples have the class {scheme.names[found[0]]} in the column {scheme.column}: there must "
            "be two classes at least. Usual causes are a part of a sorted file, the wrong label_column, and a folder "
            "one level too high"
        )


def encode_labels(dataset: Dataset, column: str, scheme: LabelScheme, split: str) -> Dataset:
    """Return `dataset` with `column` replaced by the column `labels`, in the form that the model takes."""
    from datasets import List, Value

    values = LabelValues(dataset, column, split)
    encoded: list[Any]
    kind: Any = Value("float32")
    if scheme.problem_type == REGRESSION:
        encoded = values.numbers()
    elif values.is_list != (scheme.problem_type == MULTI_LABEL):
        wanted = "lists of classes" if scheme.problem_type == MULTI_LABEL else "one class for each example"
        raise UsageError(f"{values} holds {type_of(values.feature)}: it must hold {wanted}")
    elif scheme.problem_type == SINGLE_LABEL:
        output_of = label_outputs(values, scheme.names)
        encoded, kind = [output_of(value, row) for row, value in enumerate(values.values)], Value("int64")
    else:
        kind = List(Value("float32"))
        is_vector = values.is_vector() if scheme.is_vector is None else scheme.is_vector
        encoded = values.vectors(len(scheme.names)) if is_vector else _as_vectors(values, scheme.names)
    # Another column of that name holds other labels, and is not used
    rest = dataset.remove_columns([name for name in {column, "labels"} if name in dataset.column_names])
    if not rest.column_names:  # a data set without columns has forgotten its length
        raise UsageError(f"the {split} split has only the column {column}")
    return rest.add_column("labels", encoded).cast_column("labels", kind)


def _as_vectors(values: LabelValues, names: Sequence[str]) -> list[list[float]]:
    """Return a vector of zeros and ones for each list of names."""
    for row, labels in enumerate(values.values):
        repeated = next((label for label in labels if labels.count(label) > 1), None)
        if repeated is not None:
            raise values.refuse(row, f"names {repeated} twice: the training examples have lists of names")
    output_of, size = label_outputs(values, names), len(names)
    chosen = [{output_of(label, row) for label in labels} for row, labels in enumerate(values.values)]
    return [[float(place in outputs) for place in range(size)] for outputs in chosen]


def label_outputs(values: LabelValues, names: Sequence[str]) -> Callable[[Any, int], int]:
    """Return a function that maps a label (of a list, too) and its row to the output of the model."""
    name_of = values.name_of()
    outputs = {name: i for i, name in enumerate(names)}

    def output_of(label: Any, row: int) -> int:
        name = name_of(label, row)
        if name not in outputs:
            raise UsageError(
                f"the {values.split} split has the label {name} in row {row}, which no training example has"
            )
        return outputs[name]

    return output_of


def describe_columns(kind: str, columns: Sequence[str], scheme: LabelScheme) -> str:
    """
    Return the line that a program prints at its start: which columns it reads, and what the labels are.

    Args:
        kind (`str`): what `columns` hold.
        columns (`Sequence[str]`): the columns of the inputs.
        scheme (`LabelScheme`): the labels.
    """
    if scheme.problem_type == REGRESSION:
        labels = "a number"
    else:
        several = " (any number of them per example)" if scheme.problem_type == MULTI_LABEL else ""
        # White space around a name would not be seen
        names = [name if name == name.strip() else repr(name) for name in scheme.names]
        labels = f"{len(names)} classes{several}: {listed(names)}"
    return f"{kind}: {' and '.join(columns)}; label: {scheme.column}, {labels}"


def say_columns(args: Any, kind: str, columns: Sequence[str], scheme: LabelScheme) -> None:
    """Print the line of [`describe_columns`], once for all processes."""
    if args.process_index == 0:
        print(describe_columns(kind, columns, scheme), flush=True)


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

"""The labels of one split as they stand in their column: what each value means, and which values are no labels."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .columns import type_of
from .files import is_csv

if TYPE_CHECKING:
    from datasets import Dataset

_NUMBER = re.compile(r"\s*[-+]?((\d+\.?\d*|\.\d+)(e[-+]?\d+)?|nan|inf|infinity)\s*", re.ASCII | re.IGNORECASE)
_FRACTION = re.compile(r"\s*[-+]?\d*\.\d+\s*", re.ASCII)
_INTEGER = re.compile(r"-?(0|[1-9]\d*)", re.ASCII)
UNLABELLED = -1  # the usual mark in the data sets of the Hub


class LabelValues:
    """
    The values of a column of labels.

    Args:
        dataset (`Dataset`): the examples.
        column (`str`): the column.
        split (`str`): the name of the split, for messages.

    Attributes:
        values (`list`): the values as they stand.
        class_names (`list[str]` or `None`): the names of a ClassLabel, or of the ClassLabel inside of lists.
        is_list (`bool`): each example has a list.
        is_text (`bool`): the values, or the values in the lists, are texts.
    """

    def __init__(self, dataset: Dataset, column: str, split: str):
        self.column, self.split = column, split
        self.feature = dataset.features[column]
        self.values: list[Any] = dataset[column][:]
        self.is_list = hasattr(self.feature, "feature")
        inner = self.feature.feature if self.is_list else self.feature
        names = getattr(inner, "names", None)
        self.class_names = None if names is None else list(names)
        self.dtype = str(getattr(inner, "dtype", ""))
        self.is_text = self.dtype.startswith(("string", "large_string"))
        # A data set that datasets itself read from a CSV file may have been saved with types
        self._is_csv = is_csv(dataset) and self.is_text
        if not self.dtype.startswith(("int", "uint", "string", "large_string", "bool", "float")):
            allowed = "labels must be classes, lists of classes, or numbers"
            raise UsageError(f"{self} holds {type_of(self.feature)}: {allowed}")

    def __str__(self) -> str:
        return f"the column {self.column} of the {self.split} split"

    def refuse(self, row: int, why: str) -> UsageError:
        """Return the error that the label of `row` is wrong."""
        return UsageError(f"{self}: row {row} (the first is 0) {why}")

    @cached_property
    def are_numbers(self) -> bool:
        """The values are floats, or numbers written in a CSV file of which one at least is no integer."""
        if self.is_list or self.class_names is not None:
            return False
        if not self._is_csv:
            return self.dtype.startswith("float")
        words = [value for value in self.values if value is not None]
        numbers = [word for word in words if _NUMBER.fullmatch(word)]
        if len(numbers) == len(words):
            return not all(_INTEGER.fullmatch(word) or word.strip().isdigit() for word in words)
        return False

    def are_whole_numbers(self) -> bool:
        """Return whether the values are numbers with a fraction, and all of these fractions are 0."""
        present = [value for value in self.values if value is not None]
        return self.are_numbers and bool(present) and all(float(value).is_integer() for value in present)

    def check_is_told(self) -> None:
        """Refuse a column of a CSV file that holds fractions and words, since it can mean numbers or classes."""
        if not self._is_csv or self.is_list:
            return
        fraction = next((value for value in self.values if value and _FRACTION.fullmatch(value)), None)
        for row, value in enumerate(self.values):
            if fraction is not None and value is not None and not _NUMBER.fullmatch(value):
                classes = "problem_type=single_label_classification takes all of them as names of classes"
                raise self.refuse(row, f"is {value!r}, and other rows are numbers such as {fraction}: {classes}")

    def numbers(self) -> list[float]:
        """Return the values as finite numbers."""
        can_be = self.dtype.startswith(("int", "uint", "float", "bool"))
        if self.is_list or not (can_be or self._is_csv):
            raise UsageError(f"{self} holds {type_of(self.feature)}: it must hold numbers")
        numbers = []
        for row, value in enumerate(self.values):
            if isinstance(value, str) and not _NUMBER.fullmatch(value):
                raise self.refuse(row, f"is {value!r}: it must be a number")
            numbers.append(math.nan if value is None else float(value))
            if not math.isfinite(numbers[-1]):
                raise self.refuse(row, f"is {value}: it must be a finite number")
        return numbers

    def unlabelled(self, known: Sequence[str] | None, problem_type: str | None) -> list[int]:
        """
        Return the rows that have no label: an empty value, or −1 where that is the mark of a missing label.

        Args:
            known (`Sequence[str]`, *optional*): the names of the classes, if training has told them.
            problem_type (`str`, *optional*): what the user says that the labels are. Then −1 is a label like others.
        """
        mark: Any = str(UNLABELLED) if self.is_text else UNLABELLED
        if self.class_names is None and (self.is_list or self._takes_mark_as_label(known, problem_type)):
            mark = None
        return [row for row, value in enumerate(self.values) if value is None or value == mark]

    def _takes_mark_as_label(self, known: Sequence[str] | None, problem_type: str | None) -> bool:
        if problem_type == "regression" or self.dtype == "bool" or self.are_numbers:
            return True
        if known is not None:
            return str(UNLABELLED) in known
        return problem_type is not None or not self._counts_from_unlabelled()

    def _counts_from_unlabelled(self) -> bool:
        """Return whether the values are −1, 0 and more: −1 may be a class, and may be the mark of a missing label."""
        found = {str(value) for value in self.values if value is not None}
        if not {"0", str(UNLABELLED)} <= found or not all(map(_INTEGER.fullmatch, found)):
            return False
        return min(map(int, found)) == UNLABELLED

    def is_vector(self) -> bool:
        """
        Return whether each list is a vector of zeros and ones, with one entry per class.

        Lists of integers may also name the classes by their numbers. A list of numbers holds no number twice, so it
        is a vector if all lists have the same length of 2 or more and hold only 0 and 1.
        """
        if not self.is_list or self.is_text:
            return False
        if self.dtype == "bool" or self.dtype.startswith("float"):
            return True
        lengths = {len(row) for row in self.values if row is not None}
        if len(lengths) != 1 or min(lengths) < 2 or (self.class_names and lengths != {len(self.class_names)}):
            return False
        return all(value in (0, 1) for row in self.values if row is not None for value in row)

    def vectors(self, size: int | None = None) -> list[list[float]]:
        """Return the values as vectors, of `size` entries each; by default as many as the first has."""
        if size is None:
            size = next((len(row) for row in self.values if row is not None), 0)
        for row, vector in enumerate(self.values):
            if len(vector) != size or size == 0:
                raise self.refuse(row, f"has {len(vector)} entries: each must have {size or 'at least one'}")
            for value in vector:
                if value not in (0, 1):  # None and NaN are not either
                    raise self.refuse(row, f"holds {value}: a list of {self.dtype} must hold only 0 and 1")
        return [[float(value) for value in vector] for vector in self.values]

    def name_of(self) -> Callable[[Any, int], str]:
        """Return a function that gives the name of a class for a value and its row."""
        names = self.class_names

        def name(value: Any, row: int) -> str:
            if value is None or value != value:
                raise self.refuse(row, f"holds {value}, which is no class")
            if names is None:
                return str(value)
            if not 0 <= value < len(names):
                raise self.refuse(row, f"holds {value}: classes are numbered from 0 to {len(names) - 1}")
            return names[value]

        return name


def sorted_names(names: set[str]) -> list[str]:
    """Return names of classes in order: numbers by their value, and everything else by its letters."""
    return sorted(names, key=int) if all(map(_INTEGER.fullmatch, names)) else sorted(names)

"""The columns of a data set: finding them, and naming them and their types in messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

_SHOWN = 20


def find_column(
    dataset: Dataset,
    given: str | None,
    usual: Sequence[str] = (),
    split: str | None = None,
    option: str | None = None,
) -> str:
    """
    Return `given`, by default the first of the `usual` names, if `dataset` has a column of that name.

    Args:
        split (`str`, *optional*): the split, for the message.
        option (`str`, *optional*): the option that names the column, for the message.
    """
    candidates = [given] if given else usual
    for column in candidates:
        if column in dataset.column_names:
            return column
    where = f" in the {split} split" if split else ""
    way_out = f"; {option} names another one" if option and not given else ""
    names = f"the columns are {listed(dataset.column_names)}"
    raise UsageError(f"no column {' or '.join(candidates)}{where}: {names}{way_out}")


def is_text(feature: Any) -> bool:
    """Return whether a column of the type `feature` holds strings."""
    return str(getattr(feature, "dtype", "")) in ("string", "large_string", "string_view")


def type_of(feature: Any) -> str:
    """Return the type of a column in a few words."""
    if hasattr(feature, "feature"):
        return f"lists of {type_of(feature.feature)}"
    if hasattr(feature, "names"):
        return "classes"
    if is_text(feature):
        return "texts"
    dtype = str(getattr(feature, "dtype", None) or feature)
    return "nothing" if dtype == "null" else dtype


def listed(names: Sequence[str]) -> str:
    """Return names for a message: the first of them, and how many more there are."""
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more

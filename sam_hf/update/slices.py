"""Cutting a micro-batch into slices along its examples."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from torch import Tensor

_CANNOT = "sam_ascent_fraction and sam_m cannot cut this batch into examples"
_INSTEAD = "Leave sam_ascent_fraction out, and give a sam_m that is a multiple of per_device_train_batch_size."


def first_dimension(batch: Mapping[str, Any]) -> int:
    """
    Return the number of examples of a micro-batch: the first dimension of every tensor in it.

    Raises:
        ValueError: two tensors disagree (packed sequences, image patches). Such inputs cannot be cut into examples.
    """
    examples, first_key = None, None
    for key, tensor in _tensors(batch):
        if examples is None:
            examples, first_key = tensor.shape[0], key
        elif tensor.shape[0] != examples:
            raise ValueError(
                f"{_CANNOT}: the first dimension of {key!r} is {tensor.shape[0]}, that of {first_key!r} is "
                f"{examples}. {_INSTEAD}"
            )
    if examples is None:
        raise ValueError(f"{_CANNOT}: it holds no tensor with a first dimension.")
    return examples


def slice_examples(batch: Mapping[str, Any], start: int, stop: int) -> Any:
    """Return the examples `start` to `stop` in a batch of the same type. Tensors are views; the rest is kept whole."""
    part: Any = copy.copy(batch)
    for key, value in batch.items():
        if isinstance(value, Mapping):
            part[key] = slice_examples(value, start, stop)
        elif isinstance(value, (list, tuple)) or (isinstance(value, Tensor) and value.dim() > 0):
            part[key] = value[start:stop]
    return part


def _tensors(batch: Mapping[str, Any], prefix: str = ""):
    for key, value in batch.items():
        if isinstance(value, Mapping):
            yield from _tensors(value, f"{prefix}{key}.")
        elif isinstance(value, (list, tuple)) and value and isinstance(value[0], Tensor):
            raise ValueError(f"{_CANNOT}: {prefix}{key!r} is a list of tensors. {_INSTEAD}")
        elif isinstance(value, Tensor) and value.dim() > 0:
            yield f"{prefix}{key}", value

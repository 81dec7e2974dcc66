"""
The weight of a slice in the loss of its micro-batch.

A loss that is divided by `num_items_in_batch` is a sum: the losses of slices add up. A loss that is a mean over the
micro-batch is not: each slice must be weighted by its share of the labels. A model's signature does not tell which of
the two it computes (many models accept `num_items_in_batch` and ignore it), so the loss is computed twice to find out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..update.groups import first_dimension

MEAN, SUM, NEITHER = "mean", "sum", "neither"
_ABSENT = object()


def count_labels(batch: dict[str, Any], shifted: bool) -> int | Tensor:
    """
    Return the number of labels that count in the loss of a batch; the number of examples if there are no class labels.

    Args:
        shifted (`bool`): the loss drops the first label of each sequence, see
            [`~sam_hf.compat.loss_shifts_labels`].
    """
    labels = batch.get("shift_labels", batch.get("labels"))
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return first_dimension(batch)
    if shifted and "shift_labels" not in batch:
        labels = labels[..., 1:]
    return labels.ne(-100).sum(dtype=torch.float32 if labels.device.type == "mps" else torch.float64)


def label_share(part: dict[str, Any], whole: dict[str, Any], shifted: bool) -> float | Tensor:
    """Return the share of the micro-batch's labels that a slice holds."""
    labels = count_labels(whole, shifted)
    return count_labels(part, shifted) / (labels.clamp(min=1) if isinstance(labels, Tensor) else labels)


def loss_reduction(loss: Callable[[Any], Tensor], num_items: Any, tolerance: float) -> str | None:
    """
    Return `MEAN` if `loss(num_items)` does not depend on the number, `SUM` if it is divided by it, else `NEITHER`.

    Args:
        loss: computes the loss over some examples, with the number of items that normalises it.
        num_items: that number, or `None` where Trainer counts no items.
        tolerance: the relative difference between two passes that rounding can make.

    Returns:
        `str` or `None`: `None` if these examples cannot tell: without a single label a sum is 0 and a mean is NaN.
    """
    if num_items is None:
        return MEAN
    with torch.no_grad():
        # Both passes run in any case: they may communicate, and the examples of other processes may be able to tell.
        # nn.DataParallel returns one loss per device
        value, other = float(loss(num_items).sum()), float(loss(2 * num_items).sum())
    if value == 0 or not abs(value) < float("inf"):
        return None
    if abs(other - value) <= tolerance * abs(value):
        return MEAN
    return SUM if abs(2 * other - value) <= tolerance * abs(value) else NEITHER


@contextmanager
def weighted_by(trainer: Any, share: float | Tensor, divided_by_trainer: bool) -> Iterator[None]:
    """
    Let `Trainer.training_step` multiply the loss by `share` before the backward pass.

    This goes through the divisor that Trainer applies to losses that are means, so that no code of Trainer is copied.

    Args:
        divided_by_trainer (`bool`): Trainer divides this loss by the accumulation steps.
    """
    flag = "loss_is_scaled_for_ga"
    before = trainer.__dict__.get(flag, _ABSENT), trainer.current_gradient_accumulation_steps
    setattr(trainer, flag, False)
    trainer.current_gradient_accumulation_steps = (before[1] if divided_by_trainer else 1) / share
    try:
        yield
    finally:
        trainer.current_gradient_accumulation_steps = before[1]
        if before[0] is _ABSENT:
            delattr(trainer, flag)
        else:
            setattr(trainer, flag, before[0])

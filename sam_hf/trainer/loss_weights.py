"""
The weight of a slice in its micro-batch's loss.

A loss that is normalised by `num_items_in_batch` is a sum: slices add up by themselves. A loss that is a mean over the
micro-batch is not: each slice must weigh by its share of the labels. Which of the two a model computes cannot be read
off its signature (many accept `num_items_in_batch` and ignore it), so it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..update.slices import first_dimension


def labels_in(batch: dict[str, Any]) -> int | Tensor:
    """How many labels count in the loss of a batch: class indices of −100 do not; each example if there are none."""
    labels = batch.get("labels")
    if isinstance(labels, Tensor) and not labels.is_floating_point():
        return labels.ne(-100).sum(dtype=torch.float32 if labels.device.type == "mps" else torch.float64)
    return first_dimension(batch)


def label_share(part: dict[str, Any], whole: dict[str, Any]) -> float | Tensor:
    """The share of the micro-batch's labels that a slice holds."""
    labels = labels_in(whole)
    return labels_in(part) / (labels.clamp(min=1) if isinstance(labels, Tensor) else labels)


def is_mean(loss: Callable[[Any], Tensor], num_items: Any) -> bool | None:
    """
    Whether `loss(num_items)`, a loss over some examples, ignores the number it should be normalised by; `None` where
    these examples cannot tell: without a single label a sum is 0 and a mean NaN, whatever they are divided by.
    """
    if num_items is None:
        return True
    with torch.no_grad():
        # Both passes in any case: they may communicate, and the examples of other processes may be able to tell
        value, other = loss(num_items).sum(), loss(2 * num_items).sum()  # one loss a device under nn.DataParallel
    if value == 0 or not value.isfinite():
        return None
    return bool(torch.equal(value, other))


@contextmanager
def weighted_by(trainer: Any, share: float | Tensor, divided_by_trainer: bool) -> Iterator[None]:
    """
    Inside, `Trainer.training_step` multiplies the loss by `share` before it runs backward.

    Through the divisor that Trainer applies to losses that are means, so that it stays Trainer's own code.

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


_ABSENT = object()

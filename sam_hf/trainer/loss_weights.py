"""
The weight of a slice in the loss of its micro-batch, measured by the loss itself.

A loss that is divided by `num_items_in_batch` is a sum: the losses of slices add up. A loss that is a mean over the
micro-batch is not: each slice must be weighted by its share of what the mean is over, labels or examples. Neither the
signature of a model nor its inputs tell which of these a loss is. So it is computed, over whole micro-batches and over
their slices. A loss that is none of these (class weights, negatives within the batch, a number of boxes) cannot be cut
into slices, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.utils import logging

from ..update.groups import first_dimension

logger = logging.get_logger(__name__)

MEAN, SUM, NEITHER = "mean", "sum", "neither"
# What a mean can be over. LATER_LABELS are those of a causal language model: without the first of each sequence
LABELS, LATER_LABELS, EXAMPLES = "labels", "later labels", "examples"
# Micro-batches that are compared with their slices. One is not enough: with class weights, slices that hold the same
# classes pass
CHECKS = 10


def count(batch: dict[str, Any], of: str) -> int | Tensor:
    """
    Return how many labels count in the loss of a batch, or how many examples it has.

    Args:
        of (`str`): `LABELS`, `LATER_LABELS` or `EXAMPLES`. Without class labels, it is the examples in any case.
    """
    labels = batch.get("shift_labels", batch.get("labels"))
    if of == EXAMPLES or not isinstance(labels, Tensor) or labels.is_floating_point():
        return first_dimension(batch)
    if of == LATER_LABELS and "shift_labels" not in batch and labels.dim() > 1:
        labels = labels[..., 1:]
    return labels.ne(-100).sum(dtype=torch.float32 if labels.device.type == "mps" else torch.float64)


def share_of(part: dict[str, Any], whole: dict[str, Any], of: str) -> float | Tensor:
    """Return the share of a micro-batch's labels or examples that a slice holds."""
    total = count(whole, of)
    return count(part, of) / (total.clamp(min=1) if isinstance(total, Tensor) else total)


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
    # Both passes run in any case: they may communicate, and the examples of other processes may be able to tell.
    # nn.DataParallel returns one loss per device
    value, other = float(loss(num_items).sum()), float(loss(2 * num_items).sum())
    if value == 0 or not abs(value) < float("inf"):
        return None
    if abs(other - value) <= tolerance * abs(value):
        return MEAN
    return SUM if abs(2 * other - value) <= tolerance * abs(value) else NEITHER


class SliceWeights:
    """
    What is known so far about the weights of slices. All processes know the same.

    Args:
        shifted (`bool`): Trainer takes the loss for that of a causal language model, see
            [`~sam_hf.compat.loss_shifts_labels`].

    Attributes:
        reduction: `MEAN`, `SUM`, or `None` as long as no example has had a label. Then it is not needed either: a mean
            weighs 0, and a sum is 0.
    """

    def __init__(self, shifted: bool):
        self.reduction: str | None = None
        # The likeliest first. What a check contradicts is struck off
        self._candidates = [LATER_LABELS, LABELS, EXAMPLES] if shifted else [LABELS, LATER_LABELS, EXAMPLES]
        self._chosen = self._of_items = self._candidates[0]
        self._errors = dict.fromkeys(self._candidates, 0.0)  # relative, summed over checks and processes
        self._told = 0  # how many errors each of these sums has
        self._checks = self._tries = 0
        self._difference: Tensor | float = 0.0
        self._is_late = False  # the first checks are over

    def share(self, part: dict[str, Any], whole: dict[str, Any]) -> float | Tensor | None:
        """Return the factor of the loss of a slice, or `None` for 1."""
        return None if self.reduction == SUM else share_of(part, whole, self._chosen)

    def items(self, inputs: dict[str, Any]) -> int | Tensor:
        """Return how many of the items that normalise a sum are in these inputs."""
        return count(inputs, self._of_items)

    @property
    def is_linear(self) -> bool:
        """The loss of a training step is known to be proportional to what `compute_loss` returns, or need not be."""
        return self._told > 0 or self.reduction == SUM

    @property
    def is_open(self) -> bool:
        """The next micro-batch must be checked. This ends, even if none can tell, as with single examples."""
        return self._checks < CHECKS and self._tries < 10 * CHECKS

    def check(
        self,
        whole: dict[str, Any],
        parts: Sequence[dict[str, Any]],
        losses: Tensor,
        tolerance: float,
        rounding: float,
        reduce: Callable[[Tensor], Tensor],
    ) -> bool:
        """
        Strike off what the losses of a micro-batch and its slices contradict. Return whether anything is left.

        Args:
            losses: the loss of the micro-batch; the same with the factor 2 on what `compute_loss` returns; and the
                losses of the slices without a weight. Empty if the micro-batch is a single example.
            tolerance: the largest relative difference that does not contradict.
            rounding: the relative difference that is none at all.
            reduce: sums a tensor over processes.
        """
        is_sum = self.reduction == SUM
        candidates = [SUM] if is_sum else self._candidates
        finite = losses[losses.isfinite()]
        largest = float(finite.abs().max()) if len(finite) else 0.0
        tells = largest > 0 and bool(losses[0].isfinite())
        errors = [0.0 for _ in candidates]
        if tells:
            total, doubled, terms = losses[0], losses[1], losses[2:]
            nonlinear = 0.0 if is_sum else abs(float(doubled - 2 * total))
            for place, of in enumerate(candidates):
                shares = torch.ones_like(terms) if is_sum else _shares(whole, parts, of).to(terms)
                # A slice without a label has the mean NaN and the weight 0
                error = abs(float(torch.where(shares > 0, shares * terms, 0).sum() - total))
                errors[place] = max(error, nonlinear) / largest
        contradicted = [not error <= tolerance for error in errors]
        told, *sums = reduce(losses.new_tensor([tells, *contradicted, *errors])).tolist()
        self._tries += 1
        self._checks += told > 0
        left = [of for of, votes in zip(candidates, sums, strict=False) if not votes]
        if not is_sum and left:
            self._told += int(told)
            for of, error in zip(candidates, sums[len(candidates) :], strict=True):
                self._errors[of] += error
            self._choose(left, rounding)
        return bool(left)

    def _choose(self, left: list[str], rounding: float) -> None:
        """Take the likeliest candidate unless another one is clearly nearer to the loss."""
        nearest = min(self._errors[of] for of in left)
        close = [of for of in left if self._errors[of] <= 2 * nearest + rounding * self._told]
        if self._is_late and self._chosen != close[0]:
            logger.warning(
                f"Slices were weighted by their shares of the {self._chosen} of a micro-batch, and are weighted by "
                f"those of its {close[0]} from now on, because the loss is a mean over these. The micro-batches that "
                "were checked at the start of training showed no difference between the two."
            )
        self._chosen = close[0]
        self._candidates = left if self.is_open else close

    def note(self, whole: dict[str, Any], parts: Sequence[dict[str, Any]]) -> None:
        """Note, without waiting for the device, by how much the candidates differ on a micro-batch."""
        if self.reduction != SUM and len(self._candidates) > 1:
            shares = torch.stack([_shares(whole, parts, of) for of in self._candidates])
            self._difference = (shares - shares[0]).abs().max().clamp(min=self._difference)

    def reopen(self, tolerance: Callable[[], float], reduce: Callable[[Tensor], Tensor]) -> None:
        """Check the next micro-batches again if the candidates that are left have begun to differ."""
        difference, self._difference = self._difference, 0.0
        if self.is_open or self.reduction == SUM or len(self._candidates) == 1:
            return
        if float(reduce(torch.as_tensor(difference, dtype=torch.float32))) > tolerance():
            self._checks = self._tries = 0
            self._is_late = True


def _shares(whole: dict[str, Any], parts: Sequence[dict[str, Any]], of: str) -> Tensor:
    shares = [share_of(part, whole, of) for part in parts]
    device = next((s.device for s in shares if isinstance(s, Tensor)), torch.device("cpu"))
    dtype = torch.float32 if device.type == "mps" else torch.float64
    return torch.stack([torch.as_tensor(s, dtype=dtype, device=device) for s in shares])

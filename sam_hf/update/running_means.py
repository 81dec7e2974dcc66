"""Means of the `sam_*` metrics since the last log. They stay on the device, so that no training step waits for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

NAMES = (
    "sam_perturbed_loss",
    "sam_sharpness",
    "sam_ascent_grad_norm",
    "sam_grad_cosine",
    "sam_rho",
    "sam_perturbation_ratio",
    "sam_skipped",
)


# Values of one metric that are summed in one operation. Summed one by one, they would be most of the operations that
# a SAM update launches
TOGETHER = 10


class RunningMeans:
    """
    The sums and counts of all metrics. A value that is not finite is left out, so that one overflow does not hide the
    other values.

    Args:
        device (`torch.device`): the device of the sums.
    """

    def __init__(self, device: torch.device):
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(2, len(NAMES), dtype=dtype, device=device)
        self._waiting: dict[str, list[Tensor | float]] = {}

    def zero(self) -> Tensor:
        """Return a loss of 0 on the device of the sums."""
        return torch.zeros((), device=self._sums.device)

    def add(self, name: str, value: Tensor | float | None) -> None:
        """Add a value to the mean of a metric; `None` adds nothing."""
        if value is None:
            return
        waiting = self._waiting.setdefault(name, [])
        waiting.append(value.detach() if isinstance(value, Tensor) else value)
        if len(waiting) >= TOGETHER:
            self._add_up(name)

    def clear(self) -> None:
        """Drop all values so far."""
        self._waiting.clear()
        self._sums.zero_()

    def _add_up(self, name: str) -> None:
        waiting, index = self._waiting.pop(name), NAMES.index(name)
        numbers = [value for value in waiting if not isinstance(value, Tensor) and math.isfinite(value)]
        tensors = [value.to(self._sums.device) for value in waiting if isinstance(value, Tensor)]
        if numbers:
            self._sums[0, index].add_(sum(numbers))
            self._sums[1, index].add_(len(numbers))
        if tensors:
            values = torch.stack(tensors).to(self._sums.dtype)
            finite = values.isfinite()
            self._sums[0, index].add_(torch.where(finite, values, 0).sum())
            self._sums[1, index].add_(finite.sum())

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """
        Return the means so far, and start again from nothing. Metrics without a value are left out.

        Args:
            reduce: sums a tensor over processes. It is called once, and must be called on every process.
        """
        for name in list(self._waiting):
            self._add_up(name)
        sums, counts = reduce(self._sums).tolist()
        self._sums.zero_()
        return {name: s / n for name, s, n in zip(NAMES, sums, counts, strict=True) if n}

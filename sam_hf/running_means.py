"""Means of the `sam_*` metrics since the last log, kept on the device so that no training step waits for them."""

from __future__ import annotations

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


class RunningMeans:
    """
    Sums and counts a metric. A value that is not finite is left out of its mean: one overflow must not hide the rest.

    Args:
        device (`torch.device`): where the sums are kept.
    """

    def __init__(self, device: torch.device):
        dtype = torch.float32 if device.type == "mps" else torch.float64
        self._sums = torch.zeros(2, len(NAMES), dtype=dtype, device=device)

    def zero(self) -> Tensor:
        """A loss of nothing, on the device of the others."""
        return torch.zeros((), device=self._sums.device)

    def add(self, name: str, value: Tensor | float) -> None:
        if isinstance(value, Tensor):
            value = value.detach().to(self._sums)
        else:  # `torch.as_tensor` would wait for the device
            value = torch.full((), value, dtype=self._sums.dtype, device=self._sums.device)
        finite = value.isfinite()
        index = NAMES.index(name)
        self._sums[0, index] += torch.where(finite, value, 0)
        self._sums[1, index] += finite

    def drain(self, reduce: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """
        The means so far, then start anew. Metrics without a value are left out.

        Args:
            reduce: sums a tensor over processes; called once, on every process.
        """
        sums, counts = reduce(self._sums).tolist()
        self._sums.zero_()
        return {name: s / n for name, s, n in zip(NAMES, sums, counts, strict=True) if n}

"""Stochastic rounding to bf16 and fp16: a value between two neighbours goes to either with E[rounded] = value."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)


class StochasticRounding:
    """
    Rounds with random numbers of its own, so that the generators that dropout draws from stay where they are.

    Args:
        key (`tuple[int, ...]`): what the generators are seeded by, (seed, update, rank) say: the same key, the same
            rounding, after a resume too.
    """

    def __init__(self, key: tuple[int, ...]):
        low, high = np.random.SeedSequence(key).generate_state(2)
        self._seed = int(low) | int(high) << 32
        self._generators: dict[torch.device, torch.Generator] = {}

    def restart(self) -> None:
        """Round the same values the same way again."""
        self._generators.clear()

    def __call__(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Round `values` (float32 or wider) to `dtype` (bf16 or fp16)."""
        if values.device not in self._generators:
            self._generators[values.device] = torch.Generator(values.device).manual_seed(self._seed)
        uniform = torch.rand(
            values.shape, dtype=values.dtype, device=values.device, generator=self._generators[values.device]
        )
        return _round(values, dtype, uniform)


def _round(values: Tensor, dtype: torch.dtype, uniform: Tensor) -> Tensor:
    # Sign and magnitude apart: among magnitudes, the next float up is the bit pattern plus one
    magnitude = values.abs()
    below = magnitude.to(dtype)
    too_high = below.to(values.dtype) > magnitude
    below = (below.view(torch.int16) - too_high.to(torch.int16)).view(dtype)
    above = (below.view(torch.int16) + 1).view(dtype)
    gap = above.to(values.dtype) - below.to(values.dtype)
    share = (magnitude - below.to(values.dtype)) / gap
    # `isfinite`: beyond the largest number there is nothing to round up to
    rounded = torch.where((uniform < share) & above.isfinite(), above, below)
    return torch.where(values.signbit(), -rounded, rounded)

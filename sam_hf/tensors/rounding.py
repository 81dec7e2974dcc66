"""Stochastic rounding to bf16 and fp16: a value goes to one of its two neighbours, so that E[rounded] = value."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

LOW_PRECISION = (torch.bfloat16, torch.float16)


class StochasticRounding:
    """
    Rounds with its own random generators. The generators that dropout uses do not advance.

    Args:
        key: Seed of the generators, for example (seed, update, rank). The same key gives the same rounding, also after
            a resume.
    """

    def __init__(self, key: tuple[int, ...]):
        low, high = np.random.SeedSequence(key).generate_state(2)
        self._seed = int(low) | int(high) << 32
        self._generators: dict[torch.device, torch.Generator] = {}

    def restart(self) -> None:
        """Restart the generators, so that the same values are rounded the same way again."""
        self._generators.clear()

    def __call__(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """Round `values` (float32 or wider) to `dtype` (bf16 or fp16)."""
        device = values.device
        if device not in self._generators:
            self._generators[device] = torch.Generator(device).manual_seed(self._seed)
        uniform = torch.rand(values.shape, dtype=values.dtype, device=device, generator=self._generators[device])
        return _round(values, dtype, uniform)


def _round(values: Tensor, dtype: torch.dtype, uniform: Tensor) -> Tensor:
    # The sign is handled separately: for magnitudes, the bit pattern plus one is the next larger float
    magnitude = values.abs()
    below = magnitude.to(dtype)
    too_high = below.to(values.dtype) > magnitude
    below = (below.view(torch.int16) - too_high.to(torch.int16)).view(dtype)
    above = (below.view(torch.int16) + 1).view(dtype)
    gap = above.to(values.dtype) - below.to(values.dtype)
    share = (magnitude - below.to(values.dtype)) / gap
    # `isfinite`: there is nothing above the largest number
    rounded = torch.where((uniform < share) & above.isfinite(), above, below)
    return torch.where(values.signbit(), -rounded, rounded)

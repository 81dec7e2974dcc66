"""
The perturbation as a scope: inside it the parameters hold w + ε, and after it they hold w again, bit for bit.

The saved weights live in this scope and never in the optimizer's state, so that checkpoints stay those of the base
optimizer. They are copied back: if ε were added and subtracted, the weights would drift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..methods import Ascent
from ..tensors.lists import CHUNK_ELEMENTS, copies, copy, joined, local, local_chunks, split, sum_dtype, uniform_chunks
from ..tensors.norms import GlobalReduction
from ..tensors.rounding import LOW_PRECISION


class Perturbation:
    """
    ```python
    with Perturbation() as perturbation:
        perturbation.add(parameters, ascent, rho)
        ...  # the parameters hold w + ε
    ```

    Args:
        round_to (`Callable`, *optional*): rounds a wide tensor to a low-precision dtype, for example
            [`~sam_hf.tensors.rounding.StochasticRounding`]. Rounds to nearest by default.
        keep_epsilon (`bool`, *optional*, defaults to `False`): keep the ε of bf16 and fp16 weights in float32 between
            calls of `add`, so that several ascent steps are summed before they are rounded.

    Attributes:
        ratio (`Tensor` or `None`): the share of ε that survived rounding: ⟨δ, ε⟩/⟨ε, ε⟩ over the bf16 and fp16
            weights, with δ = (w + ε as stored) − w. 1 if ε = 0; `None` if there are no such weights.
    """

    def __init__(
        self, *, round_to: Callable[[Tensor, torch.dtype], Tensor] | None = None, keep_epsilon: bool = False
    ) -> None:
        self.ratio: Tensor | None = None
        self._round_to = round_to or Tensor.to
        self._keep_epsilon = keep_epsilon
        self._saved: dict[Tensor, Tensor] = {}
        self._epsilon: dict[Tensor, Tensor] = {}

    def __enter__(self) -> Perturbation:
        return self

    def __exit__(self, *exception) -> None:
        self.restore()

    @torch.no_grad()
    def add(self, parameters: Sequence[Tensor], ascent: Ascent, radius: float | Tensor) -> None:
        """Add ε = `radius` · `ascent` to the parameters. This overwrites the directions of the ascent."""
        step = ascent.scale * (radius.to(ascent.scale.device) if isinstance(radius, Tensor) else radius)
        # Registered only after they hold the weights, so that an interrupt cannot restore anything else
        unsaved = [parameter for parameter in parameters if parameter not in self._saved]
        self._saved |= dict(zip(unsaved, copies([local(p) for p in unsaved]), strict=True))
        low = [p.dtype in LOW_PRECISION for p in parameters]
        pairs = list(zip(parameters, ascent.directions, strict=True))
        exact = [pair for pair, is_low in zip(pairs, low, strict=True) if not is_low]
        for weights, directions in local_chunks([p for p, _ in exact], [d for _, d in exact]):
            torch._foreach_mul_(directions, step.to(directions[0]))
            torch._foreach_add_(weights, directions)
        if any(low):
            self._add_low_precision([pair for pair, is_low in zip(pairs, low, strict=True) if is_low], step)

    def _add_low_precision(self, pairs: Sequence[tuple[Tensor, Tensor]], step: Tensor) -> None:
        """Work on a vector of several weights at a time, because rounding takes many operations."""
        kept, wanted = GlobalReduction("sum"), GlobalReduction("sum")
        for parameters, directions in uniform_chunks(
            [p for p, _ in pairs], [d for _, d in pairs], max_elements=CHUNK_ELEMENTS
        ):
            weights = [local(parameter) for parameter in parameters]
            dtype = sum_dtype(weights[0].dtype)
            saved = joined([self._saved[parameter] for parameter in parameters]).to(dtype)
            epsilon = joined(directions).to(dtype) * step.to(weights[0].device, dtype)
            if any(parameter in self._epsilon for parameter in parameters):
                pairs_so_far = zip(parameters, split(torch.zeros_like(epsilon), weights), strict=True)
                epsilon += joined([self._epsilon.get(parameter, zeros) for parameter, zeros in pairs_so_far])
            if self._keep_epsilon:
                self._epsilon |= dict(zip(parameters, split(epsilon, weights), strict=True))
            rounded = self._round_to(saved + epsilon, weights[0].dtype)
            copy(weights, split(rounded, weights))
            delta = rounded.to(dtype) - saved
            kept.add((delta * epsilon).sum(), parameters[0])
            wanted.add((epsilon * epsilon).sum(), parameters[0])
        total = wanted.result(step.device)
        self.ratio = torch.where(total > 0, kept.result(step.device) / total, torch.ones_like(total))

    def at_w(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return the values of the parameters at w: this process's shards."""
        return [self._saved.get(parameter, local(parameter).detach()) for parameter in parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the saved weights back. It is safe to call this twice, and after `add` failed halfway."""
        copy(list(self._saved), list(self._saved.values()))
        self._saved.clear()
        self._epsilon.clear()

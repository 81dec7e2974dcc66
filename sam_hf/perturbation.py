"""
The perturbation w + ε as a scope: inside it the parameters hold w + ε, after it w again, bit for bit.

Scoped memory and never optimizer state, so checkpoints stay those of the base optimizer. Restoring copies the saved
weights back; adding and subtracting ε would let them drift.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .methods import Ascent
from .norms import GlobalReduction, local, wide
from .rounding import LOW_PRECISION


class Perturbation:
    """
    ```python
    with Perturbation() as perturbation:
        perturbation.add(parameters, ascent, rho)
        ...  # the parameters hold w + ε
    ```

    Args:
        round_to (`Callable`, *optional*): rounds a wide tensor to a low-precision dtype
            ([`~sam_hf.rounding.StochasticRounding`]); to the nearest by default.
        keep_epsilon (`bool`, *optional*, defaults to `False`): keep ε of bf16 and fp16 weights in float32 between
            calls of `add`, so that several ascent steps add up before they are rounded.

    Attributes:
        ratio (`Tensor` or `None`): ⟨δ, ε⟩/⟨ε, ε⟩ over the bf16 and fp16 weights, δ = (w + ε as stored) − w: what
            rounding left of ε. 1 where ε = 0; `None` where there are no such weights.
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
        """Add ε = `radius` · `ascent` to the parameters. Overwrites the ascent's directions."""
        step = ascent.scale * (radius.to(ascent.scale.device) if isinstance(radius, Tensor) else radius)
        wide_parts: dict[tuple, tuple[list[Tensor], list[Tensor]]] = {}
        low_parts = []
        for parameter, direction in zip(parameters, ascent.directions, strict=True):
            weight = local(parameter)
            if parameter not in self._saved:
                self._saved[parameter] = weight.clone()
            if weight.dtype in LOW_PRECISION:
                low_parts.append((parameter, local(direction)))
            else:
                weights, directions = wide_parts.setdefault((weight.device, weight.dtype), ([], []))
                weights.append(weight)
                directions.append(local(direction))
        for (device, _), (weights, directions) in wide_parts.items():
            torch._foreach_mul_(directions, step.to(device))
            torch._foreach_add_(weights, directions)
        if low_parts:
            self._add_low_precision(low_parts, step)

    def _add_low_precision(self, parts: list[tuple[Tensor, Tensor]], step: Tensor) -> None:
        kept, wanted = GlobalReduction("sum"), GlobalReduction("sum")
        for parameter, direction in parts:
            weight, saved = local(parameter), self._saved[parameter]
            dtype = wide(weight.dtype)
            epsilon = direction.to(dtype) * step.to(weight.device, dtype)
            if parameter in self._epsilon:
                epsilon += self._epsilon[parameter]
            if self._keep_epsilon:
                self._epsilon[parameter] = epsilon
            weight.copy_(self._round_to(saved.to(dtype) + epsilon, weight.dtype))
            delta = weight.to(dtype) - saved.to(dtype)
            kept.add((delta * epsilon).sum(), parameter)
            wanted.add((epsilon * epsilon).sum(), parameter)
        total = wanted.result(step.device)
        self.ratio = torch.where(total > 0, kept.result(step.device) / total, torch.ones_like(total))

    def at_w(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """The values of the parameters at w, this process's parts."""
        return [self._saved.get(parameter, local(parameter).detach()) for parameter in parameters]

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the saved weights back. Safe to call twice, and after `add` failed in the middle."""
        if self._saved:
            torch._foreach_copy_([local(p) for p in self._saved], list(self._saved.values()))
        self._saved.clear()
        self._epsilon.clear()

"""What runs before and after each step of an optimizer."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from accelerate.optimizer import AcceleratedOptimizer

from ..tensors.optimizers import inside_accelerate

Hook = Callable[[Any], None]


class StepHooks:
    """
    Calls functions before and after each step of an optimizer. If fp16's scaler skips a step, nothing is called.

    torch has hooks for this, but an optimizer that does not call `Optimizer.__init__` never runs them: Lookahead and
    other wrappers. And those of the optimizer inside such a wrapper run before the wrapper has changed the weights. So
    the `step` of the instance is wrapped, which is what Trainer, accelerate and the scaler call.

    Args:
        optimizer (`torch.optim.Optimizer`): the optimizer of the run, possibly inside accelerate's wrapper.
        before: called with the optimizer itself before it steps.
        after: called with it after it has stepped.

    Attributes:
        calls: how often `step` was called.
        steps: how many of these calls made a step.
    """

    def __init__(self, optimizer: Any, before: Sequence[Hook] = (), after: Sequence[Hook] = ()):
        self.calls = self.steps = 0
        self._wrapper = optimizer
        self._optimizer: Any = inside_accelerate(optimizer)
        self._before, self._after = before, after
        self._is_removed = False
        self._own = vars(self._optimizer).get("step")  # that of a learning rate scheduler, which wraps it as well
        self._step = self._wrap(self._optimizer.step)
        self._optimizer.step = self._step
        self._renew()

    def remove(self) -> None:
        """Give the optimizer the `step` that it had, unless something has wrapped it again in the meantime."""
        self._is_removed = True
        if vars(self._optimizer).get("step") is self._step:
            if self._own is None:
                del self._optimizer.step
            else:
                self._optimizer.step = self._own
            self._renew()

    def _wrap(self, step: Callable[..., Any]) -> MethodType:
        @functools.wraps(step)
        def hooked(optimizer: Any, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self._is_removed or self._is_skipped():
                return step(*args, **kwargs)
            for call in self._before:
                call(optimizer)
            result = step(*args, **kwargs)
            self.steps += 1
            for call in self._after:
                call(optimizer)
            return result

        return MethodType(hooked, self._optimizer)  # torch's schedulers expect a method

    def _is_skipped(self) -> bool:
        # A fused optimizer is called even where the scaler found an overflow, and then leaves the weights alone itself
        found = getattr(self._optimizer, "found_inf", None)
        return found is not None and bool(found.any())

    def _renew(self) -> None:
        """Let accelerate look `step` up again. With a scaler, it has done so when it made its wrapper."""
        if isinstance(self._wrapper, AcceleratedOptimizer):
            self._wrapper.__setstate__(self._wrapper.__getstate__())

"""What the package asks of torch, counted: who asked for an operation, and how many launches it is on a GPU."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import sam_hf

# Besides views: they give memory or what the host knows, and nothing is computed
_NO_LAUNCH = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "detach",
    "alias",
    "promote_types",
    "_local_scalar_dense",
}
# The orders for which torch has a kernel
_NORMS = (1, 2, float("inf"))


def asked_by_sam() -> str | None:
    """The function of the package that called, torch's own Python code aside; `None` if someone else did."""
    frame = sys._getframe(2)
    while frame is not None and Path(torch.__file__).parent in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    ours = frame is not None and Path(sam_hf.__file__).parent in Path(frame.f_code.co_filename).parents
    # What the wrapped `step` asks for is the optimizer's own
    return frame.f_code.co_name if ours and frame.f_code.co_name != "hooked" else None


class Launches(TorchDispatchMode):
    """What the package asks for, by the function that does. Of the passes, whose code is not its own, nothing."""

    def __init__(self):
        super().__init__()
        self.by_function: Counter[str] = Counter()

    @property
    def number(self) -> int:
        return self.by_function.total()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if not function.is_view and name not in _NO_LAUNCH and (asked := asked_by_sam()):
            self.by_function[asked] += _launches(name, args, kwargs or {})
        return function(*args, **(kwargs or {}))


def _launches(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    """
    One. For `_foreach_*`, the number of tensors where torch's kernel for a list cannot be used: it wants one device,
    one dtype (of a scalar tensor too, and of both lists unless one is copied to the other), equal shapes and strides.
    """
    if not name.startswith("_foreach_"):
        return 1
    first, *others = args
    lists = [x for x in args if isinstance(x, (list, tuple)) and isinstance(x[0], torch.Tensor)]
    kinds = {(t.device, None if name == "_foreach_copy_" else t.dtype) for tensors in lists for t in tensors}
    kinds |= {(t.device, t.dtype) for t in others if isinstance(t, torch.Tensor)}
    alike = all((t.shape, t.stride()) == (first[i].shape, first[i].stride()) for ts in lists for i, t in enumerate(ts))
    each = all(len({t.dtype for t in tensors}) == 1 for tensors in lists)
    slow_norm = name == "_foreach_norm" and (others[0] if others else kwargs.get("ord", 2)) not in _NORMS
    return 1 if len(kinds) == 1 and alike and each and not slow_norm else len(first)

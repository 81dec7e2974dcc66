"""Counts what is copied of given tensors, whoever copies it: under this mode every operator passes by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class CopiesOf(TorchDispatchMode):
    """Counts elements of the given tensors that an operator writes to new memory, or that it writes to."""

    COPYING = ("clone", "_to_copy", "copy_", "_foreach_copy_", "_foreach_add", "_foreach_add_", "add_", "mul_")

    def __init__(self, tensors: Iterable[torch.Tensor]):
        super().__init__()
        self.watched = {tensor.untyped_storage().data_ptr() for tensor in tensors}
        self.elements: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in self.COPYING:
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() in self.watched:
                    self.elements[name] += tensor.numel()
        return func(*args, **(kwargs or {}))

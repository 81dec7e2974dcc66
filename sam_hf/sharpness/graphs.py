"""Gradients kept with their graphs between Hessian-vector products, as far as an allowance of memory goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from transformers.utils import logging

from .derivatives import first_order

logger = logging.get_logger(__name__)


class KeptGraphs:
    """
    The gradients of the first batches, ready to be differentiated again: a product with them costs no pass forward and
    no first backward pass, about a third less.

    Args:
        allowance (`float`): GiB that may be kept; 0 keeps none.
    """

    def __init__(self, allowance: float):
        if not allowance >= 0:
            raise ValueError(f"graph_memory={allowance}: a number of GiB >= 0")
        self.allowance = allowance
        self.bytes = 0
        self._kept: dict[int, list[Tensor]] = {}
        self._versions: list[int] = []
        self._is_full = allowance == 0

    def gradient(
        self, index: int, weights: Sequence[nn.Parameter], value: Callable[[], Tensor]
    ) -> tuple[list[Tensor], bool]:
        """That of batch `index` with the loss `value`, made anew unless it is kept; and whether its graph stays."""
        versions = [weight._version for weight in weights]
        if versions != self._versions:  # other weights, other graphs
            self.clear()
            self._versions = versions
        if index in self._kept:
            return self._kept[index], True
        gradient = first_order(value(), weights, create_graph=True)
        if self._is_full:
            return gradient, False
        size = graph_bytes(gradient)
        if self.bytes + size > self.allowance * 2**30:
            self._is_full = True
            logger.info(f"Keeping the graphs of {len(self._kept)} batches, {self.bytes / 2**30:.2f} GiB.")
            return gradient, False
        self._kept[index] = gradient
        self.bytes += size
        return gradient, True

    def clear(self) -> None:
        self._kept.clear()
        self.bytes, self._is_full = 0, self.allowance == 0


def graph_bytes(gradient: Sequence[Tensor]) -> int:
    """Memory of the tensors that a gradient and its graph hold, beside the leaves."""
    storages = {}
    seen, ahead = set(), [part.grad_fn for part in gradient]

    def add(tensor: Tensor) -> None:
        if not (tensor.is_leaf and tensor.requires_grad):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()

    for part in gradient:
        add(part)
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for name in dir(node):
            # Documented in torch's notes on autograd: what a node saved for its backward pass
            if name.startswith("_saved_"):
                saved = getattr(node, name)
                for tensor in saved if isinstance(saved, (list, tuple)) else [saved]:
                    if isinstance(tensor, Tensor):
                        add(tensor)
        ahead += [following for following, _ in node.next_functions]
    return sum(storages.values())

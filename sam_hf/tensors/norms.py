"""
Norms and inner products of lists of tensors. Each list is treated as one vector; sums are in float32 or wider.

Tensors may be DTensors (FSDP2, tensor parallelism). Each process works on its local shards, and the results are
reduced over the mesh of each tensor, so that every rank gets the norm of the whole vector and not that of its shards.
A list may mix plain tensors and tensors of several meshes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .lists import CHUNK_ELEMENTS, joined, local, sharding, sum_dtype, uniform_chunks

try:
    from torch.distributed.tensor import DTensor, Partial, Replicate
except ImportError:  # a torch built without distributed
    DTensor = None  # type: ignore[assignment,misc]


class GlobalReduction:
    """
    Collects partial results of a sum or a maximum, and reduces them over processes once per mesh.

    Args:
        op: `"sum"` or `"max"`.
        power: All partial results are raised to this power before they are summed, in one operation. One operation
            per tensor would take longer on an accelerator than the norm itself, for a large model.
    """

    def __init__(self, op: str, power: float = 1.0):
        self.op = op
        self.power = power
        self._partials: dict[tuple | None, list[Tensor]] = {}

    def add(self, partial: Tensor, like: Tensor) -> None:
        """Add a 0-dimensional result over the local shard of `like`, or over several shards with its sharding."""
        self._partials.setdefault(sharding(like), []).append(partial)

    def result(self, device: torch.device) -> Tensor:
        """Return the reduction over all partial results and all processes."""
        totals = []
        for key, partials in self._partials.items():
            stacked = torch.stack([p.to(partials[0].device) for p in partials])
            if self.power != 1:
                stacked = stacked.pow(self.power)
            total = stacked.sum() if self.op == "sum" else stacked.max()
            totals.append((total if key is None else self._over_mesh(total, *key)).to(device))
        if not totals:
            return torch.zeros((), device=device)
        return torch.stack(totals).sum() if self.op == "sum" else torch.stack(totals).max()

    def _over_mesh(self, total: Tensor, mesh, placements) -> Tensor:
        reduced = [Replicate() if p.is_replicate() else Partial(self.op) for p in placements]
        return DTensor.from_local(total, mesh, reduced, run_check=False).full_tensor()


def global_norm(tensors: Sequence[Tensor], order: float = 2.0, like: Sequence[Tensor] | None = None) -> Tensor:
    """
    Return the norm of the given order (`inf` included), as a 0-dimensional tensor on the device of the first tensor.

    The norm is not finite if any element is not finite, so it is enough to check this one number.

    Args:
        like: If `tensors` are local shards only, the tensors that have the sharding of the whole ones.
    """
    if not tensors:
        return torch.zeros(())
    reduction = GlobalReduction("max") if order == torch.inf else GlobalReduction("sum", power=order)
    sharded = dict(zip(tensors, like or tensors, strict=True))
    for (chunk,) in uniform_chunks(tensors):
        dtype = sum_dtype(chunk[0].dtype)
        filled = [t for t in chunk if local(t).numel() > 0]
        norms = dict(zip(filled, torch._foreach_norm([local(t) for t in filled], order, dtype=dtype), strict=True))
        for tensor in chunk:
            # A rank with an empty shard still takes part in the reduction over its mesh
            norm = norms[tensor] if tensor in norms else torch.zeros((), dtype=dtype, device=tensor.device)
            reduction.add(norm, sharded[tensor])
    total = reduction.result(tensors[0].device)
    return total if order == torch.inf else total.pow(1 / order)


def global_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Return ⟨a, b⟩ over all tensors, as a 0-dimensional tensor on the device of the first tensor."""
    if not a:
        return torch.zeros(())
    reduction = GlobalReduction("sum")
    # torch has no inner product of lists: join a chunk to one vector and take one product
    for chunk_a, chunk_b in uniform_chunks(a, b, max_elements=CHUNK_ELEMENTS):
        dtype = sum_dtype(chunk_a[0].dtype)
        reduction.add(torch.dot(joined(chunk_a).to(dtype), joined(chunk_b).to(dtype)), chunk_a[0])
    return reduction.result(a[0].device)

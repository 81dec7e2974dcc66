"""
Norms and inner products over many tensors taken as one vector, in float32 or wider.

Tensors may be DTensors (FSDP2, tensor parallelism): each is worked on through its local shard, and the sums are
reduced over the mesh it is sharded on, so that every rank gets the norm of the whole vector, not that of its shards.
Tensors of several meshes, and plain ones beside them, may be mixed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .lists import CHUNK_ELEMENTS, groups_of_one_kind, joined, local, sharding, wide

try:
    from torch.distributed.tensor import DTensor, Partial, Replicate
except ImportError:  # a torch built without distributed
    DTensor = None  # type: ignore[assignment,misc]


class GlobalReduction:
    """
    Collects partial results of a sum or maximum, tensor by tensor, and reduces them over processes once a mesh.

    Args:
        op (`str`): `"sum"` or `"max"`.
        power (`float`, *optional*, defaults to `1.0`): every partial result is raised to it before, all of them at
            once: on an accelerator, an operation for each tensor of a large model takes longer than the norm itself.
    """

    def __init__(self, op: str, power: float = 1.0):
        self.op = op
        self.power = power
        self._partials: dict[tuple | None, list[Tensor]] = {}

    def add(self, partial: Tensor, like: Tensor) -> None:
        """Add the 0-dimensional result over the local part of `like`, or of several that are sharded like it."""
        self._partials.setdefault(sharding(like), []).append(partial)

    def result(self, device: torch.device) -> Tensor:
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
    ‖(tensors)‖ of the given order (`inf` included), as a 0-dimensional tensor on the first tensor's device.

    Args:
        like (`Sequence[Tensor]`, *optional*): where `tensors` are this process's parts only, tensors that are sharded
            as the whole ones are.

    Non-finite if any element is: one number says whether all of them are finite.
    """
    if not tensors:
        return torch.zeros(())
    reduction = GlobalReduction("max") if order == torch.inf else GlobalReduction("sum", power=order)
    sharded = dict(zip(tensors, like or tensors, strict=True))
    for (group,) in groups_of_one_kind(tensors):
        dtype = wide(group[0].dtype)
        filled = [t for t in group if local(t).numel() > 0]
        norms = dict(zip(filled, torch._foreach_norm([local(t) for t in filled], order, dtype=dtype), strict=True))
        for tensor in group:
            # A rank with an empty shard still takes part in the reduction over its mesh
            norm = norms[tensor] if tensor in norms else torch.zeros((), dtype=dtype, device=tensor.device)
            reduction.add(norm, sharded[tensor])
    total = reduction.result(tensors[0].device)
    return total if order == torch.inf else total.pow(1 / order)


def global_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """⟨a, b⟩ over all tensors jointly, as a 0-dimensional tensor on the first tensor's device."""
    if not a:
        return torch.zeros(())
    reduction = GlobalReduction("sum")
    # One product of some tensors, end to end: torch has no inner product of lists
    for some, others in groups_of_one_kind(a, b, at_most=CHUNK_ELEMENTS):
        dtype = wide(some[0].dtype)
        reduction.add(torch.dot(joined(some).to(dtype), joined(others).to(dtype)), some[0])
    return reduction.result(a[0].device)

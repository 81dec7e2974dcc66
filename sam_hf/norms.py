"""
Norms and inner products over many tensors taken as one vector, in float32 or wider.

Tensors may be DTensors (FSDP2, tensor parallelism): each is worked on through its local shard, and the sums are
reduced over the mesh it is sharded on, so that every rank gets the norm of the whole vector, not that of its shards.
Tensors of several meshes, and plain ones beside them, may be mixed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

try:
    from torch.distributed.tensor import DTensor, Partial, Replicate
except ImportError:  # a torch built without distributed
    DTensor = None  # type: ignore[assignment,misc]


def is_sharded(tensor: Tensor) -> bool:
    return DTensor is not None and isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process holds, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over tensors of `dtype` are taken."""
    return torch.promote_types(dtype, torch.float32)


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
        """Add the 0-dimensional result over the local part of `like`."""
        key = None
        if is_sharded(like):
            key = (like.device_mesh, tuple(like.placements))  # type: ignore[attr-defined]
        self._partials.setdefault(key, []).append(partial)

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
    sharding = dict(zip(tensors, like or tensors, strict=True))
    for group in _same_dtype(tensors):
        dtype = wide(group[0].dtype)
        filled = [t for t in group if local(t).numel() > 0]
        norms = dict(zip(filled, torch._foreach_norm([local(t) for t in filled], order, dtype=dtype), strict=True))
        for tensor in group:
            # A rank with an empty shard still takes part in the reduction over its mesh
            norm = norms[tensor] if tensor in norms else torch.zeros((), dtype=dtype, device=tensor.device)
            reduction.add(norm, sharding[tensor])
    total = reduction.result(tensors[0].device)
    return total if order == torch.inf else total.pow(1 / order)


def global_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """⟨a, b⟩ over all tensors jointly, as a 0-dimensional tensor on the first tensor's device."""
    if not a:
        return torch.zeros(())
    reduction = GlobalReduction("sum")
    for x, y in zip(a, b, strict=True):
        dtype = wide(x.dtype)
        reduction.add(torch.dot(local(x).flatten().to(dtype), local(y).flatten().to(dtype)), x)
    return reduction.result(a[0].device)


def _same_dtype(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    groups: dict[tuple, list[Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.device, tensor.dtype), []).append(tensor)
    return groups.values()

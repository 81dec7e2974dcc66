"""
Arithmetic on many tensors at once.

An accelerator computes on a small tensor in less time than it takes to launch an operation. torch._foreach_* take a
whole list in one launch, where its tensors share a device and a dtype. What needs memory of its own is done on at most
`CHUNK_ELEMENTS` elements at a time, so that no further copy of the weights is made.

Tensors may be DTensors (FSDP2, tensor parallelism): each is worked on through its local shard, which may be empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # a torch built without distributed
    DTensor = None  # type: ignore[assignment,misc]

# 16 MiB of float32: on an accelerator, work that outlasts its launch
CHUNK_ELEMENTS = 2**22


def is_sharded(tensor: Tensor) -> bool:
    return DTensor is not None and isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """The part of `tensor` that this process holds, sharing its memory."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over tensors of `dtype` are taken."""
    return torch.promote_types(dtype, torch.float32)


def sharding(tensor: Tensor) -> tuple | None:
    """What tensors share whose parts are spread over processes alike; `None` if all of it is here."""
    return (tensor.device_mesh, tuple(tensor.placements)) if is_sharded(tensor) else None  # type: ignore[attr-defined]


def groups_of_one_kind(*lists: Sequence[Tensor], at_most: int | None = None) -> Iterator[tuple[list[Tensor], ...]]:
    """
    The lists in pieces, in each of which devices, dtypes and shardings are the same all along a list.

    Args:
        lists: of as many tensors each; those at one place stay together.
        at_most (`int`, *optional*): elements of a piece on this process; a tensor with more is a piece by itself.
    """
    # Asked at every call: a look at each tensor, as the general way takes it, would cost what launches are to save
    simple = all(_are_plain(tensors) and _are_of_one_kind(tensors) for tensors in lists)
    for rows in [list(zip(*lists, strict=True))] if simple else _rows_by_kind(lists):
        for piece in [rows] if at_most is None else _cut(rows, at_most):
            if piece:
                yield tuple(map(list, zip(*piece, strict=True)))


def local_groups(*lists: Sequence[Tensor], at_most: int | None = None) -> Iterator[tuple[list[Tensor], ...]]:
    """[`alike`], in this process's parts: what torch._foreach_* take."""
    for piece in groups_of_one_kind(*lists, at_most=at_most):
        yield tuple(tensors if _are_plain(tensors) else [local(t) for t in tensors] for tensors in piece)


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    return set(map(type, tensors)) <= {Tensor, nn.Parameter}


def _are_of_one_kind(tensors: Sequence[Tensor]) -> bool:
    return len({t.dtype for t in tensors}) == 1 and len({t.device for t in tensors}) == 1


def _rows_by_kind(lists: Sequence[Sequence[Tensor]]) -> list[list[tuple[Tensor, ...]]]:
    kinds: dict[tuple, list[tuple[Tensor, ...]]] = {}
    for row in zip(*lists, strict=True):
        kinds.setdefault(tuple((t.device, t.dtype, sharding(t)) for t in row), []).append(row)
    return list(kinds.values())


def _cut(rows: list[tuple[Tensor, ...]], at_most: int) -> Iterator[list[tuple[Tensor, ...]]]:
    piece: list[tuple[Tensor, ...]] = []
    size = 0
    for row in rows:
        elements = local(row[0]).numel()
        if piece and size + elements > at_most:
            yield piece
            piece, size = [], 0
        piece.append(row)
        size += elements
    yield piece


def multiply(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply by a 0-dimensional number, in place."""
    for (some,) in local_groups(tensors):
        torch._foreach_mul_(some, factor.to(some[0]))


def divide(tensors: Sequence[Tensor], divisor: Tensor) -> None:
    """Divide by a 0-dimensional number, in place."""
    for (some,) in local_groups(tensors):
        torch._foreach_div_(some, divisor.to(some[0]))


def add(targets: Sequence[Tensor], others: Sequence[Tensor], factor: float = 1) -> None:
    """targets ← targets + factor · others."""
    for some, more in local_groups(targets, others):
        torch._foreach_add_(some, more, alpha=factor)


def copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """targets ← sources, in the dtypes of the targets."""
    for some, more in local_groups(targets, sources):
        torch._foreach_copy_(some, more)


def copies(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Copies of the same shape and sharding."""
    made = [torch.empty_like(t, dtype=dtype or t.dtype) for t in tensors]
    copy(made, tensors)
    return made


def cast(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """The tensors in `dtype`, in float32 or wider by default: themselves where they are, copies of the others."""
    dtypes = [dtype or wide(t.dtype) for t in tensors]
    made = [t if t.dtype == d else torch.empty_like(t, dtype=d) for t, d in zip(tensors, dtypes, strict=True)]
    converted = [(new, t) for new, t in zip(made, tensors, strict=True) if new is not t]
    copy([new for new, _ in converted], [t for _, t in converted])
    return made


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """This process's parts as one vector; shares the memory of a single one."""
    vectors = [local(t).flatten() for t in tensors]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """A vector in pieces of the shapes of `like`, sharing its memory."""
    pieces = vector.split([t.numel() for t in like])
    return [piece.view(t.shape) for piece, t in zip(pieces, like, strict=True)]


# Integers that a floating-point number's bits are read as, by its size in bytes
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def clear_unless(tensors: Sequence[Tensor], keep: Tensor) -> None:
    """
    Make all elements 0 where the 0-dimensional bool `keep` is false, NaN and infinity too.

    0 · NaN is NaN, and there is no torch._foreach_where. The bits taken as an integer can be multiplied: 0 is 0.0.
    """
    multiply([local(t).view(_BITS[t.element_size()]) for t in tensors], keep)


def replace_if(targets: Sequence[Tensor], values: Sequence[Tensor], condition: Tensor) -> None:
    """
    targets ← values where the 0-dimensional bool `condition` is true; targets are finite then. Overwrites `values`.
    """
    multiply(targets, ~condition)
    clear_unless(values, condition)
    add(targets, values)

"""
Arithmetic on lists of tensors.

On an accelerator, an operation on a small tensor takes longer to launch than to compute. torch._foreach_* handle a
whole list of tensors in one launch if they share a device and a dtype. Operations that need temporary memory handle at
most `CHUNK_ELEMENTS` elements at a time, so that they never need another copy of all weights.

Tensors may be DTensors (FSDP2, tensor parallelism). Each process works on its local shard, which may be empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # a torch built without distributed
    DTensor = None  # type: ignore[assignment,misc]

# 16 MiB of float32: enough work that an accelerator computes longer than it needs for the launch
CHUNK_ELEMENTS = 2**22


def is_sharded(tensor: Tensor) -> bool:
    return DTensor is not None and isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """Return the part of `tensor` that this process holds. It shares the memory of `tensor`."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype for sums over tensors of `dtype`: float32 or wider."""
    return torch.promote_types(dtype, torch.float32)


def sharding(tensor: Tensor) -> tuple | None:
    """Return the mesh and the placements of a sharded tensor, and `None` for a plain one."""
    return (tensor.device_mesh, tuple(tensor.placements)) if is_sharded(tensor) else None  # type: ignore[attr-defined]


def uniform_chunks(*lists: Sequence[Tensor], max_elements: int | None = None) -> Iterator[tuple[list[Tensor], ...]]:
    """
    Split the lists into chunks. Within a chunk, all tensors of a list have the same device, dtype and sharding.

    Args:
        lists: Lists of the same length. Tensors at the same position stay together.
        max_elements: Largest number of elements of a chunk on this process. A larger tensor is a chunk of its own.
    """
    # Most lists are uniform. This check is fast; sorting the tensors by kind would cost the time that launches save.
    uniform = all(_are_plain(tensors) and _are_of_one_kind(tensors) for tensors in lists)
    for rows in [list(zip(*lists, strict=True))] if uniform else _rows_by_kind(lists):
        for chunk in [rows] if max_elements is None else _cut(rows, max_elements):
            if chunk:
                yield tuple(map(list, zip(*chunk, strict=True)))


def local_chunks(*lists: Sequence[Tensor], max_elements: int | None = None) -> Iterator[tuple[list[Tensor], ...]]:
    """Split the lists as `uniform_chunks` does, and replace each tensor by its local shard for torch._foreach_*."""
    for chunk in uniform_chunks(*lists, max_elements=max_elements):
        yield tuple(tensors if _are_plain(tensors) else [local(t) for t in tensors] for tensors in chunk)


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    return set(map(type, tensors)) <= {Tensor, nn.Parameter}


def _are_of_one_kind(tensors: Sequence[Tensor]) -> bool:
    return len({t.dtype for t in tensors}) == 1 and len({t.device for t in tensors}) == 1


def _rows_by_kind(lists: Sequence[Sequence[Tensor]]) -> list[list[tuple[Tensor, ...]]]:
    kinds: dict[tuple, list[tuple[Tensor, ...]]] = {}
    for row in zip(*lists, strict=True):
        kinds.setdefault(tuple((t.device, t.dtype, sharding(t)) for t in row), []).append(row)
    return list(kinds.values())


def _cut(rows: list[tuple[Tensor, ...]], max_elements: int) -> Iterator[list[tuple[Tensor, ...]]]:
    chunk: list[tuple[Tensor, ...]] = []
    size = 0
    for row in rows:
        elements = local(row[0]).numel()
        if chunk and size + elements > max_elements:
            yield chunk
            chunk, size = [], 0
        chunk.append(row)
        size += elements
    yield chunk


def multiply(tensors: Sequence[Tensor], factor: Tensor) -> None:
    """Multiply the tensors by a 0-dimensional tensor, in place."""
    for (chunk,) in local_chunks(tensors):
        torch._foreach_mul_(chunk, factor.to(chunk[0]))


def divide(tensors: Sequence[Tensor], divisor: Tensor) -> None:
    """Divide the tensors by a 0-dimensional tensor, in place."""
    for (chunk,) in local_chunks(tensors):
        torch._foreach_div_(chunk, divisor.to(chunk[0]))


def add(targets: Sequence[Tensor], others: Sequence[Tensor], factor: float = 1) -> None:
    """Compute targets ← targets + factor · others."""
    for chunk, other_chunk in local_chunks(targets, others):
        torch._foreach_add_(chunk, other_chunk, alpha=factor)


def copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy the values of `sources` into `targets`, which keep their dtypes."""
    for chunk, source_chunk in local_chunks(targets, sources):
        torch._foreach_copy_(chunk, source_chunk)


def copies(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """Return copies with the same shapes and shardings, in `dtype` if one is given."""
    made = [torch.empty_like(t, dtype=dtype or t.dtype) for t in tensors]
    copy(made, tensors)
    return made


def cast(tensors: Sequence[Tensor], dtype: torch.dtype | None = None) -> list[Tensor]:
    """
    Return the tensors in `dtype`, by default in float32 or wider. A tensor that already has this dtype is returned
    itself, not copied.
    """
    dtypes = [dtype or sum_dtype(t.dtype) for t in tensors]
    result = [t if t.dtype == d else torch.empty_like(t, dtype=d) for t, d in zip(tensors, dtypes, strict=True)]
    converted = [(new, t) for new, t in zip(result, tensors, strict=True) if new is not t]
    copy([new for new, _ in converted], [t for _, t in converted])
    return result


def joined(tensors: Sequence[Tensor]) -> Tensor:
    """Return the local shards as one vector. The vector of a single tensor shares its memory."""
    vectors = [local(t).flatten() for t in tensors]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors)


def split(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Split a vector into tensors with the shapes of `like`. They share its memory."""
    pieces = vector.split([t.numel() for t in like])
    return [piece.view(t.shape) for piece, t in zip(pieces, like, strict=True)]


# The integer type that has the size in bytes of a floating-point type
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def clear_unless(tensors: Sequence[Tensor], keep: Tensor) -> None:
    """
    Set all elements to 0, NaN and infinity included, if the 0-dimensional bool `keep` is false.

    0 · NaN is NaN, and there is no torch._foreach_where. So the bits are multiplied as integers: those of 0.0 are 0.
    """
    multiply([local(t).view(_INTEGERS[t.element_size()]) for t in tensors], keep)


def replace_if(targets: Sequence[Tensor], values: Sequence[Tensor], condition: Tensor) -> None:
    """
    Compute targets ← values if the 0-dimensional bool `condition` is true; then `targets` must be finite. Overwrites
    `values`.
    """
    multiply(targets, ~condition)
    clear_unless(values, condition)
    add(targets, values)

"""The examples that sharpness is measured on: drawn once, dealt to processes, cut into groups of m."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import find_batch_size
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from ..update.slices import first_dimension, slice_examples


def processes() -> tuple[int, int]:
    """(rank, number of processes)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(number: float, device: torch.device) -> float:
    """The sum of the processes' numbers."""
    if processes()[1] == 1:
        return number
    total = torch.tensor(float(number), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def examples_in(batch: Any) -> int:
    """The number of examples of a batch: the first dimension of its first tensor, as Trainer's evaluation counts."""
    size = find_batch_size(batch)
    if size is None:
        raise ValueError("The batch holds no tensor, so that its examples cannot be counted.")
    return size


def draw(dataloader: Iterable[Any], max_examples: int | None, seed: int) -> list[Any]:
    """
    This process's batches, in an order that stays.

    Kept, and not read anew for every pass: shuffling and augmentation would give each of them another loss.

    Args:
        max_examples (`int`, *optional*):
            Over all processes. Of a `DataLoader` with a sized dataset, this many are drawn from its `dataset` without
            replacement; its sampler is not asked. Of any other iterable the first ones are taken, in each process.
        seed (`int`):
            Of the draw.
    """
    if max_examples is not None and max_examples < 1:
        raise ValueError(f"max_examples={max_examples}: a number >= 1, or None for all")
    if max_examples is None:
        return list(dataloader)
    dataset = getattr(dataloader, "dataset", None)
    if isinstance(dataloader, DataLoader) and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset):
        return list(_subset(dataloader, max_examples, seed))
    return _first(dataloader, max_examples)


def _subset(dataloader: DataLoader, max_examples: int, seed: int) -> DataLoader:
    rank, world = processes()
    size = len(dataloader.dataset)  # type: ignore[arg-type]
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:max_examples].sort().values
    # accelerate's loaders hide the batch size in their sampler
    batch_size = dataloader.batch_size or getattr(dataloader.batch_sampler, "batch_size", None) or 1
    return DataLoader(
        Subset(dataloader.dataset, chosen[rank::world].tolist()),
        batch_size=batch_size,
        collate_fn=dataloader.collate_fn,
        # Its own generator: workers' seeds are drawn from the global one otherwise
        generator=torch.Generator().manual_seed(seed),
    )


def _first(batches: Iterable[Any], max_examples: int) -> list[Any]:
    taken: list[Any] = []
    left = max_examples
    for batch in batches:
        size = examples_in(batch)
        if size >= left:
            return [*taken, batch if size == left else _cut(batch, 0, left, f"max_examples={max_examples}")]
        taken.append(batch)
        left -= size
    return taken


def groups_of(batches: list[Any], m: int | None) -> list[list[Any]]:
    """
    The examples in disjoint groups of `m`, each of them some batches or parts of batches; the last may be smaller.

    Args:
        m (`int`, *optional*): `None`: every batch is a group.
    """
    if m is None:
        return [[batch] for batch in batches]
    if m < 1:
        raise ValueError(f"m={m}: a number >= 1, or None for the batches as they are")
    groups: list[list[Any]] = [[]]
    room = m
    for batch in batches:
        size, start = examples_in(batch), 0
        while start < size:
            stop = min(size, start + room)
            whole = start == 0 and stop == size
            groups[-1].append(batch if whole else _cut(batch, start, stop, f"m={m}"))
            room -= stop - start
            start = stop
            if room == 0:
                groups.append([])
                room = m
    return [group for group in groups if group]


def _cut(batch: Any, start: int, stop: int, asked: str) -> Any:
    if isinstance(batch, (list, tuple)) and all(isinstance(part, Tensor) for part in batch):
        return type(batch)(part[start:stop] for part in batch)
    try:
        if not isinstance(batch, Mapping):
            raise ValueError
        first_dimension(batch)
    except ValueError:
        raise ValueError(
            f"{asked} asks for a part of a batch whose tensors do not all have one row an example. Give a multiple "
            "of the dataloader's batch size, or another batch size."
        ) from None
    return slice_examples(batch, start, stop)

"""The examples that sharpness is measured on: drawn once, divided among processes, cut into groups of m."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import find_batch_size
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from ..update.groups import first_dimension, slice_examples
from .checks import check_count


def processes() -> tuple[int, int]:
    """Return the rank of this process and the number of processes."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def summed(number: float, device: torch.device) -> float:
    """Return the sum of the number over all processes."""
    if processes()[1] == 1:
        return number
    total = torch.tensor(float(number), dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return float(total)


def examples_in(batch: Any) -> int:
    """Return the number of examples, the first dimension of the batch's first tensor, as in Trainer's evaluation."""
    size = find_batch_size(batch)
    if size is None:
        raise ValueError("The batch has no tensor, so its examples cannot be counted.")
    return size


def draw(dataloader: Iterable[Any], max_examples: int | None, seed: int) -> list[Any]:
    """
    Return this process's batches as a list. If they were read again for each pass, shuffling and augmentation would
    give each pass another loss.

    Args:
        max_examples (`int`, *optional*):
            The number of examples over all processes. From a `DataLoader` with a sized dataset they are drawn without
            replacement, and its sampler is not used. From any other iterable each process takes the first ones.
        seed (`int`):
            The seed of the draw.
    """
    if max_examples is None:
        return list(dataloader)
    check_count("max_examples", max_examples, 1, note=", or None for all")
    dataset = getattr(dataloader, "dataset", None)
    if isinstance(dataloader, DataLoader) and hasattr(dataset, "__len__") and not isinstance(dataset, IterableDataset):
        return list(_subset(dataloader, max_examples, seed))
    return next(groups_of(dataloader, max_examples, "max_examples"), [])


def _subset(dataloader: DataLoader, max_examples: int, seed: int) -> DataLoader:
    rank, world = processes()
    size = len(dataloader.dataset)  # type: ignore[arg-type]
    chosen = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:max_examples].sort().values
    # accelerate's loaders have the batch size only in their sampler
    batch_size = dataloader.batch_size or getattr(dataloader.batch_sampler, "batch_size", None) or 1
    return DataLoader(
        Subset(dataloader.dataset, chosen[rank::world].tolist()),
        batch_size=batch_size,
        collate_fn=dataloader.collate_fn,
        # Without it the workers' seeds would be drawn from the global generator
        generator=torch.Generator().manual_seed(seed),
    )


def groups_of(batches: Iterable[Any], size: int | None, setting: str = "m") -> Iterator[list[Any]]:
    """
    Yield the examples in groups of `size`, each a list of batches or parts of batches. The last may be smaller.

    Args:
        size (`int`, *optional*): `None` makes each batch a group.
        setting (`str`, *optional*, defaults to `"m"`): what the user calls `size`, for errors.
    """
    if size is None:
        yield from ([batch] for batch in batches)
        return
    check_count(setting, size, 1, note=", or None for the batches as they are")
    group: list[Any] = []
    room = size
    for batch in batches:
        examples, start = examples_in(batch), 0
        while start < examples:
            stop = min(examples, start + room)
            whole = start == 0 and stop == examples
            group.append(batch if whole else _cut(batch, start, stop, f"{setting}={size}"))
            room -= stop - start
            start = stop
            if room == 0:
                yield group
                group, room = [], size
    if group:
        yield group


def _cut(batch: Any, start: int, stop: int, setting: str) -> Any:
    if isinstance(batch, (list, tuple)) and all(isinstance(part, Tensor) for part in batch):
        return type(batch)(part[start:stop] for part in batch)
    try:
        if not isinstance(batch, Mapping):
            raise ValueError
        first_dimension(batch)
    except ValueError:
        raise ValueError(
            f"{setting} needs a part of a batch whose tensors do not all have one row per example. Give a multiple "
            "of the dataloader's batch size, or another batch size."
        ) from None
    return slice_examples(batch, start, stop)

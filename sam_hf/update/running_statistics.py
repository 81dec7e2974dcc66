"""
BatchNorm's running statistics in passes that must not move them.

Statistics are saved and copied back rather than switched off through `momentum` or `track_running_stats`: that works
for every subclass, leaves `num_batches_tracked` right and gives torch.compile nothing to recompile for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..tensors.lists import copies, copy


def normalisation_with_statistics(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Those that keep running statistics: BatchNorm, SyncBatchNorm, tracking InstanceNorm, their subclasses."""
    return [m for m in modules if isinstance(getattr(m, "running_mean", None), torch.Tensor)]


@contextmanager
def statistics_held(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Passes inside normalise with batch statistics as ever, and leave the running ones as they were."""
    buffers = [b for m in modules for b in m.buffers(recurse=False)]
    saved = copies(buffers)
    try:
        yield
    finally:
        with torch.no_grad():
            copy(buffers, saved)


@contextmanager
def statistics_frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Passes inside normalise with the running statistics, as in evaluation, and do not move them."""
    was_training = [m.training for m in modules]
    for module in modules:
        module.eval()
        # Trainer's training_step calls model.train(), which reaches every module through its own `train`
        module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc,assignment]
    try:
        yield
    finally:
        for module, training in zip(modules, was_training, strict=True):
            del module.train
            module.train(training)

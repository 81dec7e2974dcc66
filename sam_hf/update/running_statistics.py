"""
Passes that must not change BatchNorm's running statistics.

The statistics are saved and copied back. Switching them off through `momentum` or `track_running_stats` would not work
for every subclass, would leave `num_batches_tracked` wrong, and would make torch.compile compile again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from ..tensors.lists import copies, copy


def normalisation_with_statistics(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Return the modules with running statistics: BatchNorm, SyncBatchNorm, tracking InstanceNorm and subclasses."""
    return [m for m in modules if isinstance(getattr(m, "running_mean", None), torch.Tensor)]


@contextmanager
def statistics_held(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Let the passes inside normalise with batch statistics as usual, and restore the running ones afterwards."""
    buffers = [b for m in modules for b in m.buffers(recurse=False)]
    saved = copies(buffers)
    try:
        yield
    finally:
        with torch.no_grad():
            copy(buffers, saved)


@contextmanager
def evaluation_mode(modules: Sequence[nn.Module]) -> Iterator[None]:
    """
    Keep the modules in evaluation mode in the passes inside, whatever `train()` these call.

    A module with running statistics then normalises with them and does not change them; dropout is off.
    """
    was_training = [m.training for m in modules]
    for module in modules:
        module.training = False  # `eval()` may do more, such as merge adapters into the weights
        # Trainer's training_step calls model.train(), which calls the `train` of every module
        module.train = lambda mode=True, module=module: module  # type: ignore[method-assign,misc,assignment]
    try:
        yield
    finally:
        for module, training in zip(modules, was_training, strict=True):
            vars(module).pop("train", None)
            module.training = training

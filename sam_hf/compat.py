"""
Private attributes of other packages: transformers, TRL and sentence-transformers. Each stands here once, with the
reason why there is no public way. tests/trainer/test_compat.py fails when one of them changes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# TRL and sentence-transformers add to these at every call of `compute_loss`, and offer no way around it. Each has the
# empty container that a pass may fill, and that is dropped afterwards.
_CONTAINERS: dict[str, Callable[[], Any]] = {
    "_metrics": lambda: defaultdict(lambda: defaultdict(list)),
    "_stored_metrics": lambda: defaultdict(lambda: defaultdict(list)),
    "accum_loss_components": lambda: defaultdict(dict),
}
# A number: a pass adds to it, and the old number is put back afterwards
_NUMBER = "_total_train_tokens"
_PACKAGES = {"trl", "sentence_transformers"}


def counts_passes(trainer: Any) -> bool:
    """Return whether the trainer is one of those. A user's own attributes with the same names mean other things."""
    return any(base.__module__.partition(".")[0] in _PACKAGES for base in type(trainer).__mro__)


@contextmanager
def uncounted(trainer: Any) -> Iterator[None]:
    """
    Leave the counters of TRL's and sentence-transformers' trainers as they were before the passes inside.

    Containers are set aside by reference and not copied, because they grow between two logs.
    """
    names = [name for name in (*_CONTAINERS, _NUMBER) if name in trainer.__dict__] if counts_passes(trainer) else []
    saved = {name: trainer.__dict__[name] for name in names}
    for name in names:
        if name in _CONTAINERS:
            setattr(trainer, name, _CONTAINERS[name]())
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(trainer, name, value)


def loss_shifts_labels(trainer: Any) -> bool:
    """
    Return whether the model's loss drops the first label of each sequence, as that of a causal language model does.

    Trainer decides this from the model's private `loss_type` and keeps the answer in a private attribute.
    """
    return getattr(trainer, "_loss_shifts_labels", False)


def prepare_inputs(trainer: Any, inputs: Any) -> Any:
    """
    Move inputs to the device, as Trainer does at the start of a pass.

    `compute_loss` is public and expects prepared inputs; Trainer's preparation, which its subclasses extend, is not.
    """
    return trainer._prepare_inputs(inputs)


def count_items(trainer: Any, batch: Any) -> Any:
    """
    Return the number of items that normalises the loss of a batch, or `None` where Trainer counts none.

    The public `get_batch_samples` counts too, but SAMMixin begins an update there.
    """
    return trainer._get_num_items_in_batch([batch], trainer.args.device)

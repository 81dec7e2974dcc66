"""What other trainers count in `compute_loss`, kept at one count for each example, however many passes see it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# TRL and sentence-transformers add to these on every call of `compute_loss` and offer no way around it, so this one
# place touches attributes that are theirs. Each with the empty container that a pass may fill and that is dropped.
_COUNTED: dict[str, Callable[[], Any]] = {
    "_metrics": lambda: defaultdict(lambda: defaultdict(list)),
    "_stored_metrics": lambda: defaultdict(lambda: defaultdict(list)),
    "accum_loss_components": lambda: defaultdict(dict),
}
# A number: a pass adds to it, and the number of before is put back
_COUNT = "_total_train_tokens"
_PACKAGES = {"trl", "sentence_transformers"}


def counts_passes(trainer: Any) -> bool:
    """Whether the trainer below is one of those. Attributes of a user's own by the same names mean other things."""
    return any(base.__module__.partition(".")[0] in _PACKAGES for base in type(trainer).__mro__)


@contextmanager
def uncounted(trainer: Any) -> Iterator[None]:
    """
    Passes inside leave the counters of TRL's and sentence-transformers' trainers as they were.

    Containers are set aside by reference and not copied: they grow with the run between two logs.
    """
    names = [name for name in (*_COUNTED, _COUNT) if name in trainer.__dict__] if counts_passes(trainer) else []
    saved = {name: trainer.__dict__[name] for name in names}
    for name in names:
        if name in _COUNTED:
            setattr(trainer, name, _COUNTED[name]())
    try:
        yield
    finally:
        for name, value in saved.items():
            setattr(trainer, name, value)

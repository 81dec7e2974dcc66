"""Replacing methods of one object for a while, where no public way leads to what happens in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_ABSENT = object()


@contextmanager
def replaced(owner: Any, **functions: Callable[..., Any]) -> Iterator[None]:
    """Replace methods on the instance `owner`, by name. Afterwards it has those of before, its own or its class's."""
    before = {name: vars(owner).get(name, _ABSENT) for name in functions}
    for name, function in functions.items():
        setattr(owner, name, function)
    try:
        yield
    finally:
        for name, function in before.items():
            if function is _ABSENT:
                delattr(owner, name)
            else:
                setattr(owner, name, function)

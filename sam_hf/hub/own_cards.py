"""
The cards that models write themselves: those of sentence-transformers in `save_pretrained`, and PEFT's adapters.

Trainer is not asked then, so the model itself has to know how it was trained. Neither library has a place for this
that is kept with the model: a template of sentence-transformers is a file, and PEFT takes tags only. So the model's
method that writes the card is put behind a [`CardWriter`], on this one model and only after it was trained with SAM.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from typing import Any

from .model_card import CardFacts

CARD = "README.md"
# What a model has that writes cards -> its public method that writes one, with the folder as the first argument
_WRITERS = {"create_or_update_model_card": "create_or_update_model_card", "model_card_data": "save"}

# What cards have that a program wrote: the tag of trainers, the Hub's template that PEFT fills in, and this package's
_MARKS = ("generated_from_trainer", "<!-- Provide a quick summary of what the model is/does. -->", "<!-- sam_hf -->")


@dataclass(eq=False, repr=False)
class CardWriter:
    """
    The method `name` of a model, which also adds `facts` to the card that it writes. It can be copied and pickled with
    the model, and the copy then saves itself.
    """

    model: Any
    name: str
    facts: CardFacts

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        method = getattr(type(self.model), self.name)
        _, folder, *_ = signature(method).bind(self.model, *args, **kwargs).args
        if folder is None:  # sentence-transformers then saves nothing
            return method(self.model, *args, **kwargs)
        before = written_at(Path(folder) / CARD)
        result = method(self.model, *args, **kwargs)
        complete_if_written(Path(folder) / CARD, before, self.facts)
        return result


def complete_own_cards(model: Any, facts: CardFacts) -> None:
    """Let `model` add `facts` to every card that it writes itself from now on. Most models write none."""
    for mark, name in _WRITERS.items():
        if hasattr(model, mark) and callable(getattr(type(model), name, None)):
            setattr(model, name, CardWriter(model, name, facts))


def complete_if_written(path: Path, before: int | None, facts: CardFacts) -> None:
    """
    Add `facts` to a card if it was written after `before`, see `written_at`. PEFT also writes into a card that the
    user wrote by hand. Such a card gets no part on SAM.
    """
    if written_at(path) == before:
        return
    text = path.read_text(encoding="utf-8")
    generated = any(mark in text for mark in _MARKS)
    (facts if generated else replace(facts, section=None, citations=None)).add_to(path)


def written_at(path: Path) -> int | None:
    """Return the time of the last write in nanoseconds, `None` if there is no file."""
    return path.stat().st_mtime_ns if path.is_file() else None

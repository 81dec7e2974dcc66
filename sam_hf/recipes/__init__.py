"""The finetuning programs of `scripts/`, which the installed package carries as `sam_hf.recipes`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

RECIPES = {
    "text": "Finetune on text, one sentence or a pair.",
    "image": "Finetune an image classifier.",
}


def recipe_main(name: str) -> Callable[[list[str] | None], None]:
    """
    `main` of `scripts/finetune_NAME.py`, to be called with the options of its command line.

    Args:
        name (`str`): one of `RECIPES`.
    """
    return _module(name).main


def recipe_argument_types(name: str) -> list[type]:
    """The three dataclasses that the recipe's options are fields of: of the data, the model and the training."""
    return _module(name).argument_types()


def _module(name: str) -> Any:
    return import_module(f"sam_hf.recipes.finetune_{name}")

"""The finetuning programs of `scripts/`, which the installed package carries as `sam_hf.recipes`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

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
    return import_module(f"sam_hf.recipes.finetune_{name}").main

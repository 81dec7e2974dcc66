"""The finetuning programs. `sam-hf NAME` and `scripts/finetune_NAME.py` run them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

# Name -> what it does. The programs are imported only when they are used, since they import torch
RECIPES = {
    "text": "Finetune on text, one sentence or a pair.",
    "image": "Finetune an image classifier.",
}


def recipe_main(name: str) -> Callable[[Sequence[str] | None], None]:
    """Return the function `main` of the recipe `name`, which takes the words of its command line."""
    return _module(name).main


def recipe_argument_types(name: str) -> list[type]:
    """Return the three dataclasses of the recipe's options: of the data, the model and the training."""
    return _module(name).ARGUMENT_TYPES


def _module(name: str) -> Any:
    return import_module(f"{__name__}.finetune_{name}")

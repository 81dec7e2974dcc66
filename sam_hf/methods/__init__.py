"""The table of methods. A new one is one file in this folder and one line here."""

from __future__ import annotations

from .base import Ascent, Method
from .sam import SAM

METHODS: dict[str, type[Method]] = {
    "sam": SAM,
}

__all__ = ["METHODS", "Ascent", "Method"]

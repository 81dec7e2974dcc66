"""The table of methods. A new method is one file in this folder and one line here."""

from __future__ import annotations

from ._base import Ascent, Cost, Method, Option, Point, Products
from .asam import ASAM
from .fsam import FriendlySAM
from .gsam import GSAM
from .looksam import LookSAM
from .msam import MomentumSAM
from .nbar import NBAR
from .sam import SAM
from .vasso import VaSSO
from .wsam import WSAM

METHODS: dict[str, type[Method]] = {
    "sam": SAM,
    "asam": ASAM,
    "gsam": GSAM,
    "wsam": WSAM,
    "fsam": FriendlySAM,
    "vasso": VaSSO,
    "looksam": LookSAM,
    "msam": MomentumSAM,
    "nbar": NBAR,
}

__all__ = ["METHODS", "Ascent", "Cost", "Method", "Option", "Point", "Products"]

"""
sam_hf: Sharpness-Aware Minimization (SAM, arXiv 2010.01412) as a drop-in for the Hugging Face `Trainer`.

This is not Segment Anything, which is also called SAM in transformers.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

# Public name -> module. A module is imported on first use, so `import sam_hf` loads neither torch nor transformers.
_PUBLIC = {
    "SAMMixin": "trainer.mixin",
    "SAMTrainer": "trainer.mixin",
    "SAMSeq2SeqTrainer": "trainer.mixin",
    "SAMArguments": "arguments.fields",
    "SAMTrainingArguments": "arguments.fields",
    "SAMSeq2SeqTrainingArguments": "arguments.fields",
    "SharpnessCallback": "sharpness.callback",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from .arguments.fields import SAMArguments as SAMArguments
    from .arguments.fields import SAMSeq2SeqTrainingArguments as SAMSeq2SeqTrainingArguments
    from .arguments.fields import SAMTrainingArguments as SAMTrainingArguments
    from .sharpness.callback import SharpnessCallback as SharpnessCallback
    from .trainer.mixin import SAMMixin as SAMMixin
    from .trainer.mixin import SAMSeq2SeqTrainer as SAMSeq2SeqTrainer
    from .trainer.mixin import SAMTrainer as SAMTrainer


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)

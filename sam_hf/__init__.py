"""
sam_hf: Sharpness-Aware Minimization (SAM, arXiv 2010.01412) as a drop-in for the Hugging Face `Trainer`.

Not Segment Anything, which transformers also calls SAM.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

# Public name -> module. Imported on first use: `import sam_hf` alone loads neither torch nor transformers.
_PUBLIC = {
    "SAMMixin": "trainer",
    "SAMTrainer": "trainer",
    "SAMSeq2SeqTrainer": "trainer",
    "SAMArguments": "training_args",
    "SAMTrainingArguments": "training_args",
    "SAMSeq2SeqTrainingArguments": "training_args",
    "SharpnessCallback": "callbacks",
}

__all__ = [*_PUBLIC, "__version__"]

if TYPE_CHECKING:
    from .callbacks import SharpnessCallback as SharpnessCallback
    from .trainer import SAMMixin as SAMMixin
    from .trainer import SAMSeq2SeqTrainer as SAMSeq2SeqTrainer
    from .trainer import SAMTrainer as SAMTrainer
    from .training_args import SAMArguments as SAMArguments
    from .training_args import SAMSeq2SeqTrainingArguments as SAMSeq2SeqTrainingArguments
    from .training_args import SAMTrainingArguments as SAMTrainingArguments


def __getattr__(name: str):
    if name in _PUBLIC:
        return getattr(import_module(f".{_PUBLIC[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted(__all__)

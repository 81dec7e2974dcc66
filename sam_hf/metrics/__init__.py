"""Metrics that need no Hub: modules for `evaluate.load(path)`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import UsageError

_FOLDER = Path(__file__).parent


def load_metric(name: str) -> Any:
    """The metric `name` of this package, an [`~evaluate.Metric`]."""
    import evaluate

    try:
        # Trainer hands over gathered predictions: each process computes alone, and keeps no file that others wait for
        return evaluate.load(str(_FOLDER / f"{name}.py"), keep_in_memory=True)
    except ImportError as error:
        raise UsageError(f'the metrics need more packages: pip install "sam-hf[examples]" ({error})') from error

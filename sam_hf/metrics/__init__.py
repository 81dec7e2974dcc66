"""Metrics that work without the Hub: each file next to this one is a module for `evaluate.load(path)`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from evaluate import MetricInfo


def load_metric(name: str) -> Any:
    """Return the metric `name` of this package, an [`~evaluate.Metric`]."""
    import evaluate

    try:
        # Trainer passes gathered predictions, so each process computes by itself, without files that others read
        return evaluate.load(str(Path(__file__).with_name(f"{name}.py")), keep_in_memory=True)
    except ImportError as error:
        raise UsageError(f'the metrics need more packages: pip install "sam-hf[examples]" ({error})') from error


def metric_info(description: str, inputs: str, feature: Any) -> MetricInfo:
    """
    Return the description of a metric whose predictions and references are both of the type `feature`.

    The metric files import this function by its absolute name, because evaluate runs copies of them.
    """
    from datasets import Features
    from evaluate import MetricInfo

    return MetricInfo(
        description=description,
        citation="",
        inputs_description=f"predictions and references: {inputs}",
        features=Features({"predictions": feature, "references": feature}),
    )

"""Mean squared and mean absolute error, by scikit-learn."""

from __future__ import annotations

import datasets
import evaluate
from sklearn.metrics import mean_absolute_error, mean_squared_error


class Regression(evaluate.Metric):
    """`mse` and `mae` of predicted numbers."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references: numbers",
            features=datasets.Features(
                {"predictions": datasets.Value("float32"), "references": datasets.Value("float32")}
            ),
        )

    def _compute(self, predictions, references):
        return {
            "mse": float(mean_squared_error(references, predictions)),
            "mae": float(mean_absolute_error(references, predictions)),
        }

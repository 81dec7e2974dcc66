"""Accuracy and macro-averaged F1, by scikit-learn."""

from __future__ import annotations

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class Classification(evaluate.Metric):
    """`accuracy` and `f1_macro` of predicted classes."""

    def _info(self):
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references: class numbers",
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0)),
        }

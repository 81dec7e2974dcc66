"""Micro- and macro-averaged F1 and subset accuracy of multi-label predictions, by scikit-learn."""

from __future__ import annotations

import datasets
import evaluate
from sklearn.metrics import accuracy_score, f1_score


class MultiLabel(evaluate.Metric):
    """`f1_micro`, `f1_macro` and `subset_accuracy` of 0/1 vectors."""

    def _info(self):
        vector = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references: a 0 or 1 for each label",
            features=datasets.Features({"predictions": vector, "references": vector}),
        )

    def _compute(self, predictions, references):
        return {
            "f1_micro": float(f1_score(references, predictions, average="micro", zero_division=0)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0)),
            "subset_accuracy": float(accuracy_score(references, predictions)),
        }

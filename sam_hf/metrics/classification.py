"""Accuracy and macro-averaged F1, computed by scikit-learn."""

import evaluate
from datasets import Value
from sklearn.metrics import accuracy_score, f1_score

from sam_hf.metrics import metric_info


class Classification(evaluate.Metric):
    """`accuracy` and `f1_macro` of predicted classes."""

    def _info(self):
        return metric_info(__doc__, "class numbers", Value("int64"))

    def _compute(self, predictions, references):
        return {
            "accuracy": float(accuracy_score(references, predictions)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0)),
        }

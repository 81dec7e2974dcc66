"""Micro- and macro-averaged F1 and subset accuracy of multi-label predictions, computed by scikit-learn."""

import evaluate
from datasets import List, Value
from sklearn.metrics import accuracy_score, f1_score

from sam_hf.metrics import metric_info


class MultiLabel(evaluate.Metric):
    """`f1_micro`, `f1_macro` and `subset_accuracy` of 0/1 vectors."""

    def _info(self):
        return metric_info(__doc__, "a 0 or 1 for each label", List(Value("int64")))

    def _compute(self, predictions, references):
        return {
            "f1_micro": float(f1_score(references, predictions, average="micro", zero_division=0)),
            "f1_macro": float(f1_score(references, predictions, average="macro", zero_division=0)),
            "subset_accuracy": float(accuracy_score(references, predictions)),
        }

"""Precision, recall and F1 of the entities in tagged words, and the accuracy of the tags, computed by seqeval."""

import evaluate
from datasets import List, Value
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

from sam_hf.metrics import metric_info


class Entities(evaluate.Metric):
    """
    `f1`, `precision` and `recall` of whole entities (CoNLL's measure, averaged over entities), and `accuracy` of tags.
    """

    def _info(self):
        inputs = "a list of tags (B-PER, I-PER, O, ...) for each sentence"
        return metric_info(__doc__, inputs, List(Value("string")))

    def _compute(self, predictions, references):
        measures = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
        return {
            **{name: float(measure(references, predictions, zero_division=0)) for name, measure in measures.items()},
            "accuracy": float(accuracy_score(references, predictions)),
        }

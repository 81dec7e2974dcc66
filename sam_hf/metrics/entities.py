"""Entity-level precision, recall and F1 of tagged words, by seqeval, and the accuracy of the tags."""

from __future__ import annotations

import datasets
import evaluate
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score


class Entities(evaluate.Metric):
    """
    `f1`, `precision` and `recall` of whole entities (CoNLL's measure, averaged over entities), and `accuracy` of tags.
    """

    def _info(self):
        tags = datasets.Sequence(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references: a list of tags (B-PER, I-PER, O, ...) for each sentence",
            features=datasets.Features({"predictions": tags, "references": tags}),
        )

    def _compute(self, predictions, references):
        measures = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
        return {
            **{name: float(measure(references, predictions, zero_division=0)) for name, measure in measures.items()},
            "accuracy": float(accuracy_score(references, predictions)),
        }

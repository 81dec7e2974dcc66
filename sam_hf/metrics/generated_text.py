"""chrF and BLEU by sacrebleu, ROUGE by rouge_score, of generated texts."""

from __future__ import annotations

import datasets
import evaluate
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf

_KINDS = ("rouge1", "rouge2", "rougeL")


class GeneratedText(evaluate.Metric):
    """
    `chrf`, `bleu`, `rouge1`, `rouge2`, `rougeL` (F-measure, the mean over texts), each from 0 to 100, one reference a
    text. rouge_score splits into words of a to z and digits, without stemming: in another script its figures say
    nothing, and chrF is the one to read.
    """

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="predictions and references: texts",
            features=datasets.Features({"predictions": text, "references": text}),
        )

    def _compute(self, predictions, references):
        scorer = RougeScorer(_KINDS)
        scores = [scorer.score(right, made) for right, made in zip(references, predictions, strict=True)]
        return {
            "chrf": corpus_chrf(predictions, [references]).score,
            "bleu": corpus_bleu(predictions, [references]).score,
            **{kind: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for kind in _KINDS},
        }

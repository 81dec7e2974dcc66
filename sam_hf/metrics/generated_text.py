"""chrF and BLEU of generated texts, computed by sacrebleu, and ROUGE, computed by rouge_score."""

import evaluate
from datasets import Value
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu import corpus_bleu, corpus_chrf

from sam_hf.metrics import metric_info

_ROUGE = ("rouge1", "rouge2", "rougeL")


class GeneratedText(evaluate.Metric):
    """
    `chrf`, `bleu`, `rouge1`, `rouge2` and `rougeL` (F-measure, mean over texts), each from 0 to 100, with one
    reference per text. rouge_score finds only words of the letters a to z and digits, and does not stem them: for
    texts in another script ROUGE is meaningless, use chrF.
    """

    def _info(self):
        return metric_info(__doc__, "texts", Value("string"))

    def _compute(self, predictions, references):
        scorer = RougeScorer(_ROUGE)
        scores = [scorer.score(right, made) for right, made in zip(references, predictions, strict=True)]
        return {
            "chrf": corpus_chrf(predictions, [references]).score,
            "bleu": corpus_bleu(predictions, [references]).score,
            **{kind: 100 * sum(score[kind].fmeasure for score in scores) / len(scores) for kind in _ROUGE},
        }

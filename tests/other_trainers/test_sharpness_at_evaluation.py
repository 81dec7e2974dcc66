"""Sharpness at every evaluation of TRL's and sentence-transformers' trainers, which count and log on their own."""

from __future__ import annotations

import pytest
from causal import llama, run, run_with, texts, with_sam
from embeddings import embedder, pairs
from tiny import assert_same, snapshot

from sam_hf import SharpnessCallback

trl = pytest.importorskip("trl")
st = pytest.importorskip("sentence_transformers")
losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

SFT = with_sam(trl.SFTTrainer, trl.SFTConfig)
EMBEDDINGS = with_sam(st.SentenceTransformerTrainer, st.SentenceTransformerTrainingArguments)
OPTIONS = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, "sam_rho": 0.2}


def sft(folder, **options):
    model = llama(dropout=0.2)
    return run(SFT, model, texts(16), folder, eval_dataset=texts(8), **OPTIONS, **options)


def embeddings(folder, **options):
    model = embedder(folder / "model", dropout=0.2)
    loss = losses.CosineSimilarityLoss(model)
    data = pairs(16, "similarity")
    return run_with(EMBEDDINGS, model, data, folder, loss=loss, eval_dataset=data, **OPTIONS, **options)


@pytest.mark.parametrize("train", [sft, embeddings])
def test_training_is_the_same_and_evaluations_have_it(tmp_path, train):
    plain = train(tmp_path)
    returned = []

    class Returned(SharpnessCallback):
        def on_evaluate(self, args, state, control, metrics=None, **kwargs):
            super().on_evaluate(args, state, control, metrics=metrics, **kwargs)
            returned.append(metrics)

    trainer = train(tmp_path, callbacks=[Returned(max_examples=8)])
    assert_same(snapshot(trainer.model), snapshot(plain.model))
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    assert len(evaluations) == len(returned) == 2
    for entry, metrics in zip(evaluations, returned, strict=True):
        assert entry["eval_sharpness_lambda_max"] == metrics["eval_sharpness_lambda_max"] > 0
        assert entry["eval_sharpness_m"] == metrics["eval_sharpness_m"] > 0
    # The measurement must not change what they count and log themselves, such as num_tokens
    for entry, other in zip(trainer.state.log_history, plain.state.log_history, strict=True):
        kept = {k: v for k, v in entry.items() if "sharpness_" not in k and not k.endswith(("runtime", "second"))}
        assert kept == {k: v for k, v in other.items() if not k.endswith(("runtime", "second"))}

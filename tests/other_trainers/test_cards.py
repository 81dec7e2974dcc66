"""Trainers that write their own model card. SAM keeps it and adds how SAM was used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from causal import llama, run, run_with, texts, with_sam
from embeddings import embedder, pairs
from huggingface_hub import ModelCard
from transformers import LlamaForCausalLM

from sam_hf import SAMMixin
from sam_hf.hub.model_card import TAGS
from sam_hf.methods import METHODS


def assert_completed(path: Path, own: str) -> ModelCard:
    card = ModelCard.load(path)
    assert set(TAGS) <= set(card.data.tags)
    assert own in card.text
    assert "| method | [Sharpness-Aware Minimization]" in card.text
    assert METHODS["sam"].citation in card.text
    return card


def assert_snippet_runs(card: ModelCard, *classes: type) -> None:
    snippets = re.findall(r"```python\n(.*?)```", card.text, re.DOTALL)
    names = {made.__name__: made for made in classes}
    (code,) = (snippet for snippet in snippets if "sam_hf" in snippet)
    exec(code.replace('"out"', '"out", use_cpu=True, bf16=False'), names)  # TRL's defaults need a GPU
    made = names[f"SAM{classes[0].__name__}"]
    assert issubclass(made, SAMMixin) and issubclass(made, classes[0])
    assert isinstance(names["args"], classes[1]) and names["args"].sam_rho_schedule == "auto"


def test_sft(tmp_path):
    trl = pytest.importorskip("trl")
    llama().save_pretrained(tmp_path / "private")
    model = LlamaForCausalLM.from_pretrained(tmp_path / "private")
    trainer = run(with_sam(trl.SFTTrainer, trl.SFTConfig), model, texts(8), tmp_path / "out")
    trainer.create_model_card(model_name="out", dataset_name="me/data")
    card = assert_completed(Path(trainer.args.output_dir) / "README.md", "This model was trained with SFT.")
    assert {"sft", "trl"} <= set(card.data.tags)
    assert card.data.datasets == "me/data", "TRL writes one name, not a list"
    assert "private" not in card.content
    assert_snippet_runs(card, trl.SFTTrainer, trl.SFTConfig)


def test_sentence_transformers(tmp_path):
    st = pytest.importorskip("sentence_transformers")
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    model = embedder(tmp_path / "private")
    classes = with_sam(st.SentenceTransformerTrainer, st.SentenceTransformerTrainingArguments)
    loss = losses.MultipleNegativesRankingLoss(model, scale=2.0)
    trainer = run_with(classes, model, pairs(8), tmp_path / "out", loss=loss)
    trainer.create_model_card()
    card = assert_completed(Path(trainer.args.output_dir) / "README.md", "MultipleNegativesRankingLoss")
    assert card.data.library_name == "sentence-transformers"
    assert str(tmp_path) not in card.content
    assert_snippet_runs(card, st.SentenceTransformerTrainer, st.SentenceTransformerTrainingArguments)

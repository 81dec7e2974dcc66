"""The cards that models write themselves, by sentence-transformers and PEFT: they say how SAM was used too."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import causal
import pytest
import tiny
import torch
from causal import SPECIAL, WORDS, phrase, run_with, tokenizer, with_sam
from datasets import Dataset
from huggingface_hub import ModelCard
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from sam_hf.hub.model_card import TAGS
from sam_hf.methods import METHODS

KINDS = {
    "SentenceTransformer": (BertModel, "MultipleNegativesRankingLoss"),
    "CrossEncoder": (BertForSequenceClassification, "MultipleNegativesRankingLoss"),
    "SparseEncoder": (BertForMaskedLM, "SpladeLoss"),
}


def pairs(size: int) -> Dataset:
    generator = torch.Generator().manual_seed(1)
    return Dataset.from_list([{"first": phrase(generator, 3), "second": phrase(generator, 3)} for _ in range(size)])


def model_of(st, kind: str, folder: Path):
    """Return a tiny model of this kind. It is loaded from a folder with a private name."""
    settings = {"vocab_size": len(SPECIAL + WORDS), "hidden_size": 8, "num_hidden_layers": 1}
    settings |= {"num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 32, "num_labels": 1}
    torch.manual_seed(0)
    KINDS[kind][0](BertConfig(**settings)).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return getattr(st, kind)(str(folder), device="cpu")


def loss_of(st, kind: str, model):
    if kind == "SentenceTransformer":
        return st.sentence_transformer.losses.MultipleNegativesRankingLoss(model)
    if kind == "CrossEncoder":
        return st.cross_encoder.losses.MultipleNegativesRankingLoss(model, num_negatives=1)
    losses = st.sparse_encoder.losses
    ranking = losses.SparseMultipleNegativesRankingLoss(model)
    return losses.SpladeLoss(model, ranking, document_regularizer_weight=1e-4, query_regularizer_weight=1e-4)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Return `train(kind)`, which trains a tiny model with SAM and returns the trainer."""
    st = pytest.importorskip("sentence_transformers")

    def train(kind: str, **changes):
        model = model_of(st, kind, tmp_path / "secret-folder")
        names = (f"{kind}Trainer", f"{kind}TrainingArguments")
        classes = with_sam(*(getattr(st, name) for name in names))
        # Trainer pickles its arguments when it saves, so their class must be found in its module
        monkeypatch.setattr(causal, classes[1].__name__, classes[1], raising=False)
        loss = loss_of(st, kind, model)
        return run_with(classes, model, pairs(8), tmp_path / "out", loss=loss, **changes)

    return train


def assert_says_sam(folder: Path, *own: str) -> str:
    card = ModelCard.load(folder / "README.md")
    assert set(TAGS) <= set(card.data.tags)
    assert card.text.count("## Sharpness-Aware Minimization") == 1
    assert "| method | [Sharpness-Aware Minimization]" in card.text
    assert card.text.count(METHODS["sam"].citation) == 1
    assert all(text in card.text for text in own)
    return card.content


@pytest.mark.parametrize("kind", KINDS)
def test_the_models_own_card(train, kind, tmp_path):
    trainer = train(kind)
    trainer.model.save_pretrained(str(tmp_path / "own"))
    content = assert_says_sam(tmp_path / "own", KINDS[kind][1])
    assert "secret-folder" not in content
    trainer.model.save(str(tmp_path / "own"))  # a second time into the same folder
    assert_says_sam(tmp_path / "own", KINDS[kind][1])


@pytest.mark.parametrize("kind", KINDS)
def test_the_card_of_the_trainers_save(train, kind, tmp_path):
    trainer = train(kind, save_strategy="steps", save_steps=1)
    trainer.save_model()
    assert "secret-folder" not in assert_says_sam(tmp_path / "out", KINDS[kind][1])
    (first, *_) = sorted((tmp_path / "out").glob("checkpoint-*"))
    assert_says_sam(first, KINDS[kind][1])


def test_a_copy_of_the_model_saves_itself(train, tmp_path):
    model = train("SentenceTransformer").model
    for name, other in {"copied": copy.deepcopy(model), "pickled": pickle.loads(pickle.dumps(model))}.items():
        with torch.no_grad():
            next(other.parameters()).fill_(7.0)
        other.save_pretrained(str(tmp_path / name))
        assert_says_sam(tmp_path / name)
        saved = type(model)(str(tmp_path / name), device="cpu")
        assert next(saved.parameters()).eq(7.0).all(), "the weights are those of the original"


def test_a_model_that_is_pushed_by_itself(train, connected):
    train("SentenceTransformer").model.push_to_hub("tester/embedder")
    text = connected.files("embedder")["README.md"].decode()
    assert "## Sharpness-Aware Minimization" in text and TAGS[0] in text


def test_a_save_without_a_card_writes_none(train, tmp_path):
    model = train("SentenceTransformer").model
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("Written by hand.\n")
    model.save_pretrained(str(tmp_path / "own"), create_model_card=False)
    assert (tmp_path / "own" / "README.md").read_text() == "Written by hand.\n"


@pytest.mark.parametrize("changes", [{"sam_method": "none"}, {"sam_rho": 0.0}])
def test_plain_training_is_not_called_sam(train, tmp_path, changes):
    trainer = train("SentenceTransformer", **changes)
    trainer.save_model()
    trainer.model.save_pretrained(str(tmp_path / "own"))
    for folder in ("out", "own"):
        text = (tmp_path / folder / "README.md").read_text()
        assert "Sharpness" not in text and TAGS[0] not in text


@pytest.fixture
def adapted(make, tmp_path):
    peft = pytest.importorskip("peft")
    tiny.bert(dtype=torch.float32).save_pretrained(tmp_path / "secret-folder")
    base = BertForSequenceClassification.from_pretrained(tmp_path / "secret-folder")
    model = peft.get_peft_model(base, peft.LoraConfig("SEQ_CLS", r=2, target_modules=["query", "value"]))
    return make(model, push_to_hub=False)


def test_the_own_card_of_adapters(adapted, tmp_path):
    adapted.train()
    adapted.model.save_pretrained(str(tmp_path / "own"))
    adapted.model.save_pretrained(str(tmp_path / "own"))
    adapted.save_model(str(tmp_path / "saved"))
    for folder in ("own", "saved", "run/checkpoint-3"):
        content = assert_says_sam(tmp_path / folder, "### Framework versions\n\n- PEFT")
        assert str(tmp_path) not in content


def test_adapters_that_are_saved_before_training(adapted, tmp_path):
    adapted.save_model(str(tmp_path / "saved"))
    content = (tmp_path / "saved" / "README.md").read_text()
    assert "Sharpness" not in content and str(tmp_path) not in content


def test_peft_writes_into_a_card_of_the_users_own_and_nothing_on_sam_is_added(adapted, tmp_path):
    for folder in ("own", "saved"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "README.md").write_text("---\nlicense: mit\n---\nWritten by hand.\n")
    adapted.train()
    adapted.model.save_pretrained(str(tmp_path / "own"))
    adapted.save_model(str(tmp_path / "saved"))
    for folder in ("own", "saved"):
        text = (tmp_path / folder / "README.md").read_text()
        assert "Written by hand." in text and "- PEFT" in text
        assert "Sharpness" not in text and TAGS[0] not in text and str(tmp_path) not in text


def test_a_readme_of_the_users_own_is_left_alone(make, tmp_path):
    """Trainer writes no card when it saves a plain model."""
    trainer = make(push_to_hub=False)
    (tmp_path / "run").mkdir(exist_ok=True)
    (tmp_path / "run" / "README.md").write_text("Written by hand.\n")
    trainer.train()
    trainer.save_model()
    assert (tmp_path / "run" / "README.md").read_text() == "Written by hand.\n"

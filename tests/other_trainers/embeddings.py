"""Tiny models for sentence-transformers' trainers, and data for them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from causal import SPECIAL, WORDS, phrase, tokenizer
from datasets import Dataset
from transformers import BertConfig, BertForSequenceClassification, BertModel


def checkpoint(folder: Path, model_class=BertModel, dropout: float = 0.0, **config: Any) -> str:
    """Save a BERT with its tokenizer, and return the folder."""
    settings = {
        "vocab_size": len(SPECIAL + WORDS),
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": 32,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    model_class(BertConfig(**(settings | config))).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return str(folder)


def embedder(folder: Path, dropout: float = 0.0):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    transformer = Transformer(checkpoint(folder, dropout=dropout))
    return SentenceTransformer(modules=[transformer, Pooling(8)], device="cpu").double()


def cross_encoder(folder: Path):
    from sentence_transformers import CrossEncoder

    return CrossEncoder(checkpoint(folder, BertForSequenceClassification, num_labels=1), device="cpu").double()


def sparse_encoder(folder: Path):
    from sentence_transformers import SparseEncoder
    from sentence_transformers.sparse_encoder.modules import MLMTransformer, SpladePooling
    from transformers import BertForMaskedLM

    transformer = MLMTransformer(checkpoint(folder, BertForMaskedLM))
    return SparseEncoder(modules=[transformer, SpladePooling("max")], device="cpu").double()


def pairs(size: int, label: str | None = None) -> Dataset:
    """Return pairs of sentences, with one of three classes or a similarity as the label."""
    generator = torch.Generator().manual_seed(1)
    rows: list[dict[str, Any]] = [
        {"first": phrase(generator, 2 + i % 3), "second": phrase(generator, 3)} for i in range(size)
    ]
    for i, row in enumerate(rows):
        if label is not None:
            row["label"] = i % 3 if label == "class" else (i % 5) / 4
    return Dataset.from_list(rows)

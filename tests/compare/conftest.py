"""Fixtures: a tiny BERT, files of sentences, and a comparison of two variants, two seeds and two noise rates."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from sentence_files import WORDS, write_sentences


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=16,
        initializer_range=0.2,  # learns the task in a second; transformers' 0.02 does not
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(checkpoint, tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp("sentences")
    return {
        "model_name_or_path": str(checkpoint),
        "train_file": str(write_sentences(folder / "train.csv", 96, seed=0)),
        "validation_file": str(write_sentences(folder / "test.csv", 40, seed=1)),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 8,
        "learning_rate": 0.01,
        "use_cpu": True,
        "dataloader_pin_memory": False,
    }


@pytest.fixture
def write_plan(tmp_path, base):
    """`write_plan(key=value, ...)` writes a file of a small comparison with these keys changed."""

    def write(**changes) -> str:
        content = {
            "recipe": "text",
            "base": base,
            "methods": {"adamw": {"sam_method": "none"}, "sam": {"sam_method": "sam", "sam_rho": 0.05}},
            "baseline": "adamw",
            "seeds": [0, 1],
            "label_noise": [0, 0.4],
        }
        content |= changes
        file = tmp_path / "plan.yaml"
        file.write_text(yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False))
        return str(file)

    return write

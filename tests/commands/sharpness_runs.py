"""A function that saves a tiny checkpoint, and options that measure it quickly."""

from __future__ import annotations

from pathlib import Path

import torch

WORDS = ["good", "fine", "bad", "poor", "the", "film", "plot", "was"]
QUICK = ["--use_cpu", "--disable_tqdm", "--max_examples", "10", "--batch_size", "4"]
FEW = ["--trace_probes", "2", "--trace_sketch", "1", "--density_probes", "1", "--density_steps", "3"]


def save_bert(folder: Path, seed: int = 0, names=("bad", "good"), **changes) -> Path:
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

    folder.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 4}
    config = BertConfig(
        vocab_size=len(vocabulary),
        max_position_embeddings=16,
        initializer_range=0.5,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
        **(sizes | changes),
    )
    torch.manual_seed(seed)
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder

"""A tiny BERT in a folder, a file of sentences, and `sam-hf` as a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

REPOSITORY = Path(__file__).parents[2]
WORDS = ["good", "fine", "bad", "poor", "the", "film", "plot", "was"]


def save_tiny_bert(folder: Path, seed: int = 0) -> Path:
    """Save an encoder with its tokenizer and return its folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir(parents=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=16, **sizes)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(seed)
    BertModel(config).save_pretrained(folder)
    return folder


def write_sentences(path: Path, count: int = 16, first: int = 0) -> Path:
    """Write `count` sentences with the labels kind and unkind, and return the path of the CSV file."""
    numbers = range(first, first + count)
    rows = [f"{WORDS[i % 4]} {WORDS[4 + i % 3]},{'kind' if i % 4 < 2 else 'unkind'}" for i in numbers]
    path.write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    return path


def sam_hf(*words: object) -> subprocess.CompletedProcess:
    """Run `sam-hf` with these words, as a user does."""
    program = "import sys; from sam_hf.commands.console import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )


def assert_one_line(done: subprocess.CompletedProcess, *expected: str, status: int = 2) -> None:
    """Check that a program ended with one line on stderr that holds the `expected` words."""
    assert done.returncode == status, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in done.stderr, done.stderr
    assert all(words in lines[0] for words in expected), lines[0]
    assert status != 2 or len(done.stderr.splitlines()) == 1, done.stderr

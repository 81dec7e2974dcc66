"""The code of docs/other_trainers.md runs from top to bottom, and the page lists the refused trainers, no others."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import tiny
import torch
from causal import llama, preferences, texts, tokenizer
from embeddings import embedder, pairs
from test_refused import REFUSED
from test_seq2seq import reversals, t5

from sam_hf import SAMMixin

for package in ("trl", "sentence_transformers", "peft"):
    pytest.importorskip(package)

PAGE = Path(__file__).parents[2] / "docs" / "other_trainers.md"
TEXT = PAGE.read_text(encoding="utf-8")


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = {
        "model": llama(dtype=torch.float32),
        "reference": llama(dtype=torch.float32),
        "tokenizer": tokenizer(),
        "texts": texts(8),
        "preferences": preferences(8),
        "embedder": embedder(tmp_path / "model"),
        "pairs": pairs(8),
        "translator": t5(),
        "translations": reversals(8),
        "classifier": tiny.bert(),
        "examples": tiny.sentences(8),
    }
    # Trainer pickles the arguments, so their class must be in a module
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    namespace = vars(module)
    namespace.update(given)
    blocks = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(blocks) == 5
    for block in blocks:
        # TRL's arguments train in bf16, which needs use_cpu where there is no GPU
        block = block.replace("num_train_epochs=1", "num_train_epochs=1, use_cpu=True")
        exec(compile(block, str(PAGE), "exec"), namespace)
        trainer = namespace.pop("trainer")
        assert isinstance(trainer, SAMMixin)
        assert trainer.state.global_step == 1
        assert trainer.sam_args.sam_rho > 0


def test_the_page_names_every_refused_trainer():
    listed = TEXT.partition("### Refused")[2].partition("\n## ")[0]
    assert set(re.findall(r"`(\w+Trainer)`", listed)) == REFUSED

"""The examples as modules and as commands, each with a tiny model and a data set that is easy to learn."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

REPOSITORY = Path(__file__).parents[2]
NAMES = ["anna", "bert", "carla"]
OTHERS = ["sees", "the", "dog", "in", "a", "house"]


@pytest.fixture(scope="session")
def example():
    """A function that returns `main` of an example, and loads each example once."""
    loaded = {}

    def load(name: str):
        if name not in loaded:
            spec = importlib.util.spec_from_file_location(f"example_{name}", REPOSITORY / "examples" / f"{name}.py")
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # pickle looks here for the class of the arguments
            spec.loader.exec_module(module)
            loaded[name] = module
        return loaded[name].main

    return load


@pytest.fixture(scope="session")
def command():
    """Run words as a command: `command("examples/sft.py", *options)`."""

    def call(*words) -> subprocess.CompletedProcess:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        return subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=REPOSITORY,
            timeout=180,
        )

    return call


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def word_tokenizer(folder: Path, words: list[str]) -> int:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    core.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    """A BERT for which `carla` is two tokens: carl and ##a."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "anna", "bert", "carl", "##a", "smith", *OTHERS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=32, **sizes)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    vocabulary = word_tokenizer(folder, OTHERS)
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(vocab_size=vocabulary, max_position_embeddings=32, pad_token_id=0, eos_token_id=1, **sizes)
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def t5(tmp_path_factory) -> Path:
    from transformers import T5Config, T5ForConditionalGeneration

    folder = tmp_path_factory.mktemp("t5")
    vocabulary = word_tokenizer(folder, [*OTHERS, "chien", "la", "maison", "voit", "translate:"])
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=vocabulary,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
    )
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return folder


def tagged_sentences(count: int, seed: int) -> list[dict]:
    """Return sentences in which names are tagged B-PER, the `smith` after a name I-PER, and other words O."""
    generator = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        words: list[tuple[str, str]] = []
        for _ in range(generator.integers(2, 5)):
            words.append((str(generator.choice(OTHERS)), "O"))
            if generator.random() < 0.5:
                words.append((str(generator.choice(NAMES)), "B-PER"))
                words += [("smith", "I-PER")] if generator.random() < 0.5 else []
        rows.append({"tokens": [word for word, _ in words], "ner_tags": [tag for _, tag in words]})
    return rows


@pytest.fixture(scope="session")
def tag_files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tags")
    test = [{"tokens": ["the", "carla", "smith"]}, {"tokens": ["anna", "sees", "a", "dog", "in", "the", "house"]}]
    return {
        "train": write_jsonl(folder / "train.jsonl", tagged_sentences(64, 0)),
        "validation": write_jsonl(folder / "validation.jsonl", tagged_sentences(16, 1)),
        "test": write_jsonl(folder / "test.jsonl", test),
    }


@pytest.fixture(scope="session")
def text_files(tmp_path_factory) -> dict[str, Path]:
    """Texts in which each word is always followed by the same other word."""
    folder = tmp_path_factory.mktemp("texts")
    rows = [{"text": " ".join(OTHERS[(i + k) % len(OTHERS)] for k in range(6 + i % 3))} for i in range(24)]
    return {
        "train": write_jsonl(folder / "train.jsonl", rows),
        "validation": write_jsonl(folder / "validation.jsonl", rows[:8]),
    }


@pytest.fixture(scope="session")
def pair_files(tmp_path_factory) -> dict[str, Path]:
    """Pairs whose translations have one or two words, so the targets differ in length."""
    folder = tmp_path_factory.mktemp("pairs")
    rows = [
        {"english": f"{article} {word}", "french": translation}
        for article in ("the", "a")
        for word, translation in (("dog", "chien"), ("house", "la maison"), ("sees", "voit"))
    ]
    return {
        "train": write_jsonl(folder / "train.jsonl", rows * 8),
        "validation": write_jsonl(folder / "validation.jsonl", rows),
        "test": write_jsonl(folder / "test.jsonl", [{"english": "a house"}, {"english": "the dog"}]),
    }

"""Tiny checkpoints and data files, and the two scripts as modules and as commands."""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

REPOSITORY = Path(__file__).parents[2]
WORDS = ["good", "fine", "great", "bad", "poor", "awful", "a", "the", "film", "plot", "was", "is"]


def load_script(name: str):
    spec = importlib.util.spec_from_file_location(name, REPOSITORY / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def finetune_text():
    return load_script("finetune_text")


@pytest.fixture(scope="session")
def finetune_image():
    return load_script("finetune_image")


@pytest.fixture(scope="session")
def command():
    """Run a script as a user does: `command("finetune_text", *options)`."""

    def call(name: str, *options) -> subprocess.CompletedProcess:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
        script = REPOSITORY / "scripts" / f"{name}.py"
        return subprocess.run(
            [sys.executable, str(script), *map(str, options)], capture_output=True, text=True, env=environment
        )

    return call


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    """A BERT with a fixed seed. It has no dropout, so runs that must agree need not share random numbers."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=32).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def vit(tmp_path_factory) -> Path:
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16,
        patch_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    ViTForImageClassification(config).save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def timm_checkpoint(tmp_path_factory) -> Path:
    """A small timm network with BatchNorm, in the format of timm's checkpoints on the Hub."""
    timm = pytest.importorskip("timm")
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", pretrained=False, num_classes=3)
    save_file(model.state_dict(), folder / "model.safetensors", {"format": "pt"})
    config = {
        "architecture": "test_resnet",
        "num_classes": 3,
        "num_features": model.num_features,
        "pretrained_cfg": {
            "num_classes": 3,
            "input_size": [3, 64, 64],
            "pool_size": [2, 2],
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "first_conv": model.default_cfg["first_conv"],
            "classifier": model.default_cfg["classifier"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def two_updates() -> list[str]:
    """Options of a run of two updates."""
    options = "--report_to none --disable_tqdm true --use_cpu true --per_device_train_batch_size 4 --save_strategy no"
    return [*options.split(), "--sam_rho", "0.05", "--max_steps", "2"]


@pytest.fixture
def train_images(finetune_image, tmp_path, two_updates):
    """Run the image program for two updates. Returns the folder of the output."""

    def call(model, *options, output: str = "output") -> Path:
        shared = ["--model_name_or_path", model, "--output_dir", tmp_path / output, *two_updates]
        finetune_image.main([*map(str, shared), *map(str, options)])
        return tmp_path / output

    return call


def sentences(count: int, seed: int) -> list[tuple[str, int]]:
    """Return texts of 3 to 8 words with their class, which is 1 if the first word is a positive one."""
    generator = np.random.default_rng(seed)
    examples = []
    for i in range(count):
        rest = generator.choice(WORDS[6:], size=generator.integers(2, 8)).tolist()
        examples.append((" ".join([WORDS[:3][i % 3] if i % 2 else WORDS[3:6][i % 3], *rest]), i % 2))
    return examples


@pytest.fixture(scope="session")
def write_csv(tmp_path_factory):
    def write(name: str, header: list[str], rows) -> Path:
        path = tmp_path_factory.mktemp("csv") / name
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(header)
            writer.writerows(rows)
        return path

    return write


@pytest.fixture(scope="session")
def write_jsonl(tmp_path_factory):
    def write(name: str, rows: list[dict]) -> Path:
        path = tmp_path_factory.mktemp("jsonl") / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def text_files(write_csv) -> dict[str, Path]:
    """36 + 8 + 4 examples. Of the 36, micro-batches of 8 leave one of 4, in a separate update."""
    sizes = {"train": 36, "validation": 8, "test": 4}
    return {
        split: write_csv(f"{split}.csv", ["sentence", "label"], sentences(size, seed))
        for seed, (split, size) in enumerate(sizes.items())
    }


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory) -> Path:
    """13 PNG files in two class folders: dark ones in grey, and bright ones in colour."""
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for i in range(13):
        name, shape, low = ("bright", (20, 20, 3), 120) if i % 2 else ("dark", (20, 20), 0)
        (root / name).mkdir(exist_ok=True)
        pixels = generator.integers(low, low + 120, size=shape, dtype=np.uint8)
        Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root

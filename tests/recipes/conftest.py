"""A tiny checkpoint and sentences, and the text recipe in this process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_text import save_tiny_bert, write_sentences

QUIET = (
    "--do_train --num_train_epochs 1 --use_cpu --report_to none --disable_tqdm true --save_strategy no "
    "--per_device_train_batch_size 4"
)


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("tiny") / "bert")


@pytest.fixture(scope="session")
def sentences(tmp_path_factory) -> dict[str, Path]:
    """16 sentences to train on, which are 4 updates, and 8 to validate on."""
    folder = tmp_path_factory.mktemp("sentences")
    return {name: write_sentences(folder / f"{name}.csv", n) for name, n in (("train", 16), ("validation", 8))}


@pytest.fixture
def words(tiny_bert, sentences, tmp_path) -> Callable[..., list[str]]:
    """Return the words of a command line. Options given again replace those before."""

    def make(*options: object, output: str = "out", model: Path = tiny_bert) -> list[str]:
        given = ["--model_name_or_path", model, "--output_dir", tmp_path / output, "--train_file", sentences["train"]]
        given += ["--validation_file", sentences["validation"], *QUIET.split(), *options]
        return [str(word) for word in given]

    return make


@pytest.fixture
def train(words, tmp_path) -> Callable[..., Path]:
    """Run the text recipe in this process, and return its output folder."""
    from sam_hf.recipes.finetune_text import main

    def call(*options: object, output: str = "out", **changes: Path) -> Path:
        main(words(*options, output=output, **changes))
        return tmp_path / output

    return call

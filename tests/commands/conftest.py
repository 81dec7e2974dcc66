"""A checkpoint and data for the tests of `sam-hf sharpness`, and a function that runs the command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from sharpness_runs import QUICK, WORDS, save_bert

from sam_hf.commands.sharpness.command import main


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return save_bert(tmp_path_factory.mktemp("models") / "first")


@pytest.fixture(scope="module")
def reviews(tmp_path_factory) -> Path:
    generator = np.random.default_rng(0)
    rows = ["text,label"]
    for i in range(14):
        words = generator.choice(WORDS[4:], size=generator.integers(1, 7)).tolist()
        rows.append(f"{WORDS[i % 4]} {' '.join(words)},{'bad' if i % 4 > 1 else 'good'}")
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def measure(tmp_path):
    def call(model: Path, *options, out: str = "report") -> dict:
        main(["--model", str(model), "--out", str(tmp_path / out), *QUICK, *map(str, options)])
        return json.loads((tmp_path / out / "sharpness.json").read_text())

    return call

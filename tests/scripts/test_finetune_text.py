from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune_text.py"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--sam_rho", "-1"], "sam_rho"),
        (["--sam_rhoo", "1"], "sam_rho"),
        (["--model_name_or_path", "m", "--train_file", "missing.csv"], "missing.csv"),
        (["--model_name_or_path", "m", "--train_file", "data.csv"], "a, b"),
    ],
)
def test_bad_input_is_one_line_and_status_2(tmp_path, options, expected):
    (tmp_path / "data.csv").write_text("a,b\nx,1\n")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, str(SCRIPT), "--output_dir", str(tmp_path / "out"), *options]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and expected in lines[0]
    assert "Traceback" not in done.stderr

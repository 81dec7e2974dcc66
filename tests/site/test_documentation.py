"""What the README claims is what the result files and the code say."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from sam_hf import SAMArguments

ROOT = Path(__file__).parents[2]


def test_tables_are_generated_from_the_committed_results():
    command = [sys.executable, "benchmarks/tables.py", "--check"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0, "run python benchmarks/tables.py"


def test_every_argument_is_in_the_readme_with_its_default():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for argument in fields(SAMArguments):
        default = f'"{argument.default}"' if isinstance(argument.default, str) else argument.default
        assert f"| `{argument.name}` | `{default}` |" in readme

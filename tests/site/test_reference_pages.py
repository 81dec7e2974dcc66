"""docs/arguments.md and docs/logged_metrics.md agree with the code, and the Python code of all pages compiles."""

from __future__ import annotations

import importlib
import re
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import tiny

from sam_hf import SAMArguments, SAMTrainer
from sam_hf.arguments.schedules import uses_auto_radius
from sam_hf.update.running_means import NAMES

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def section(name: str, heading: str) -> str:
    return re.split(r"\n##+ ", text_of(name).partition(f"# {heading}\n")[2])[0]


def test_the_page_of_arguments_agrees_with_the_code(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    monkeypatch.setattr(sys, "argv", ["make_arguments.py", "--check"])
    with pytest.raises(SystemExit) as stop:  # in this process: a new one would import torch again
        importlib.import_module("make_arguments").main()
    assert stop.value.code == 0, "run python docs/make_arguments.py"


@pytest.mark.parametrize("argument", fields(SAMArguments), ids=lambda argument: argument.name)
def test_every_argument_is_described_with_its_choices_and_default(argument):
    """Without this test, the check above would also pass with empty blocks."""
    text = section("arguments.md", argument.name)
    default = f'"{argument.default}"' if isinstance(argument.default, str) else argument.default
    assert f"Default: `{default}`." in text
    description = text.partition("Default: ")[2].partition("\n")[2]
    assert len(description.split()) > 4
    for choice in argument.metadata.get("choices", ()):
        assert f'`"{choice}"`' in description, f"the docstring of SAMArguments does not say what {choice} is"


def test_every_metric_has_its_section():
    headings = re.findall(r"^## (sam_\w+)$", text_of("logged_metrics.md"), flags=re.MULTILINE)
    assert sorted(headings) == sorted(NAMES)


def test_the_quickstart_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)```", text_of("quickstart.md"), flags=re.DOTALL)
    data = tiny.sentences(8)
    namespace = {"model": tiny.bert(), "train_dataset": data, "eval_dataset": data}
    exec(first.replace('"out",', '"out", use_cpu=True, report_to="none", disable_tqdm=True,'), namespace)
    assert isinstance(namespace["trainer"], SAMTrainer)
    assert namespace["trainer"].state.global_step == 3
    assert uses_auto_radius(namespace["args"])
    assert "eval_loss" in capsys.readouterr().out
    exec(second, namespace)
    assert namespace["args"].sam_rho == 0.01


def test_the_code_of_every_page_compiles():
    blocks = 0
    for page in [*DOCS.rglob("*.md"), *ROOT.glob("*.md")]:
        for block in re.findall(r"```python[^\n]*\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            if not block.startswith(" "):  # docs/adding_a_method.md shows one line of a dict
                compile(block, str(page), "exec")
            blocks += 1
    assert blocks >= 20

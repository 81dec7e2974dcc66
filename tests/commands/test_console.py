"""`sam-hf`: the installed command in a subprocess, and what a wheel carries."""

from __future__ import annotations

import configparser
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from setuptools import find_namespace_packages

from sam_hf.commands.console import COMMANDS, main
from sam_hf.methods import METHODS
from sam_hf.recipes import RECIPES, recipe_main

ROOT = Path(__file__).parents[2]
SAM_HF = Path(sys.executable).parent / "sam-hf"


def call(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(SAM_HF), *words], capture_output=True, text=True, timeout=120)


def test_the_installed_command_shows_its_commands_and_says_which_sam_this_is():
    answer = call("--help")
    assert answer.returncode == 0
    assert "Sharpness-Aware Minimization" in answer.stdout
    for name, (summary, _) in COMMANDS.items():
        assert f"{name} " in answer.stdout and summary in answer.stdout


@pytest.mark.parametrize(
    "words, message",
    [
        (["txt"], "error: unknown command txt: did you mean text?\n"),
        (["zzz"], "error: unknown command zzz: one of"),
        (["env", "--all"], "error: sam-hf env takes no options: --all was given\n"),
        (["text", "--sam_rho", "0.1"], "error: model_name_or_path is missing"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(words)
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.err.startswith(message) and shown.err.count("\n") == 1


def test_methods_prints_every_method(capsys):
    main(["methods"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1 : len(METHODS) + 1]] == list(METHODS)


def test_env_prints_versions(capsys):
    main(["env"])
    assert f"- torch: {version('torch')}\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_the_programs_of_scripts(name, monkeypatch, capsys):
    file = Path(sys.modules[recipe_main(name).__module__].__file__)
    assert file.resolve() == (ROOT / "scripts" / f"finetune_{name}.py").resolve()
    monkeypatch.setattr(sys, "argv", ["sam-hf"])
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: sam-hf {name}" in capsys.readouterr().out


def test_setup_cfg_lists_every_package():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    listed = {line for line in setup["options"]["packages"].split() if not line.startswith("#")}
    found = {
        name
        for name in find_namespace_packages(str(ROOT), include=["sam_hf*"])
        if list((ROOT / name.replace(".", "/")).glob("*.py"))
    }
    assert listed == found | {"sam_hf.recipes"}


@pytest.mark.parametrize("words", [["methods"], ["env"]], ids=str)
def test_a_reader_that_has_enough_is_no_error(words):
    process = subprocess.Popen([str(SAM_HF), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as `head` does
    assert "Traceback" not in process.stderr.read() and process.wait(timeout=120) == 1

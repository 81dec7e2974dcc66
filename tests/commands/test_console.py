"""The command `sam-hf` as it is installed, and what setup.cfg packages."""

from __future__ import annotations

import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from setuptools import Distribution

from sam_hf.commands.console import COMMANDS, main
from sam_hf.methods import METHODS
from sam_hf.recipes import RECIPES, recipe_main

ROOT = Path(__file__).parents[2]
SAM_HF = Path(sys.executable).parent / "sam-hf"


def call(*words: str) -> subprocess.CompletedProcess:
    return subprocess.run([str(SAM_HF), *words], capture_output=True, text=True, timeout=120)


def test_the_installed_command_shows_its_commands_and_which_sam_it_is():
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
    script = runpy.run_path(str(ROOT / "scripts" / f"finetune_{name}.py"))
    assert script["main"] is recipe_main(name)
    monkeypatch.setattr(sys, "argv", ["sam-hf"])
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    assert f"usage: sam-hf {name}" in capsys.readouterr().out


def test_help_does_not_import_torch():
    program = (
        "import sys; from sam_hf.commands.console import main; main(['--help']); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_setup_cfg_packages_every_module_and_template(monkeypatch):
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files(["setup.cfg"])
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    modules = {Path(file) for _, _, file in build.find_all_modules()}
    data = {Path(folder, name) for _, folder, _, names in build.data_files for name in names}
    assert modules == set(Path("sam_hf").rglob("*.py"))
    assert data == {Path("sam_hf/py.typed"), *Path("sam_hf").rglob("*.j2")}


@pytest.mark.parametrize("words", [["methods"], ["env"]], ids=str)
def test_a_closed_pipe_is_no_error(words):
    process = subprocess.Popen([str(SAM_HF), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()  # as `head` does when it has enough lines
    assert "Traceback" not in process.stderr.read() and process.wait(timeout=120) == 1

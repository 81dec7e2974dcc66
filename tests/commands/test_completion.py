"""`sam-hf completion`: shells can read the script, and it offers the right words."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest

from sam_hf.arguments.fields import SAMArguments
from sam_hf.commands import completion
from sam_hf.commands.console import COMMANDS, main
from sam_hf.methods import METHODS

needs_shtab = pytest.mark.skipif(find_spec("shtab") is None, reason="needs the package shtab")

SCHEDULES = SAMArguments.__dataclass_fields__["sam_rho_schedule"].metadata["choices"]
# Does what bash does at a TAB: it calls the registered function with the words so far, the last of them unfinished
AT_A_TAB = """
source "$1"; shift
registered=($(complete -p sam-hf)); function="${registered[-2]}"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"$function"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    def write(shell: str) -> str:
        path = folder / shell
        if not path.exists():
            with pytest.MonkeyPatch.context() as patch, path.open("w", encoding="utf-8") as file:
                patch.setattr(sys, "stdout", file)
                main(["completion", shell])
        return str(path)

    folder = tmp_path_factory.mktemp("completion")
    return write


@pytest.fixture
def offered(script, tmp_path):
    for name in ("run.yaml", "rows.csv"):
        (tmp_path / name).touch()
    (tmp_path / "runs").mkdir()

    def press_tab(*words: str) -> list[str]:
        answer = subprocess.run(
            ["bash", "--norc", "-c", AT_A_TAB, "bash", script("bash"), "sam-hf", *words],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        )
        assert answer.stderr == ""
        return answer.stdout.split()

    return press_tab


@needs_shtab
@pytest.mark.parametrize(
    "typed, expected",
    [
        ([""], list(COMMANDS)),
        (["sh"], ["sharpness"]),
        (["text", "--sam_rho_"], ["--sam_rho_schedule", "--sam_rho_min", "--sam_rho_warmup_ratio"]),
        (["image", "--image_s"], ["--image_size"]),
        (["sharpness", "--again"], ["--against"]),
        (["compare", "plan.yaml", "--dry"], ["--dry_run"]),
        (["text", "--sam_method", ""], ["none", *METHODS]),
        (["text", "--do_train", "--sam_rho", "0.1", "--sam_method", "look"], ["looksam"]),
        (["text", "--sam_rho_schedule", ""], SCHEDULES),
        (["text", "--lora_target_modules", "query", "value", "--sam_batch_norm", "f"], ["first", "frozen"]),
        (["text", "--do_train", "f"], ["false"]),
        (["text", "--config", "r"], ["run.yaml", "rows.csv", "runs"]),
        (["text", "--train_file", "ro"], ["rows.csv"]),
        (["text", "--output_dir", "r"], ["runs"]),
        (["text", "--overwrite_output_dir", "t"], ["true"]),
        (["compare", "ru"], ["run.yaml", "runs"]),
        (["completion", ""], list(completion.SHELLS)),
    ],
    ids=" ".join,
)
def test_bash_offers(offered, typed, expected):
    assert sorted(offered(*typed)) == sorted(expected)


@needs_shtab
def test_an_option_is_offered_once_and_in_the_spelling_of_the_help(offered):
    options = offered("text", "--")
    assert {"--learning_rate", "--help_all", "--no_sam_replay_rng"} <= set(options)
    assert len(options) == len({option.replace("-", "_") for option in options})


@needs_shtab
@pytest.mark.parametrize("shell", completion.SHELLS)
def test_a_shell_reads_the_script(script, shell):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    read = subprocess.run([shell, "-n", script(shell)], capture_output=True, text=True)
    assert (read.returncode, read.stderr) == (0, "")


@pytest.mark.parametrize("words, message", [([], "required: shell"), (["cmd"], "invalid choice: 'cmd'")])
def test_wrong_use(capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        main(["completion", *words])
    shown = capsys.readouterr().err
    assert stop.value.code == 2 and message in shown and shown.count("\n") == 1


def test_the_package_it_needs_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as stop:
        main(["completion", "bash"])
    assert stop.value.code == 2
    assert capsys.readouterr().err == 'error: completion needs shtab: pip install "sam-hf[completion]"\n'

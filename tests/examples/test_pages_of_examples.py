"""The examples understand the commands in examples/README.md, and each has its help."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[2] / "examples" / "README.md"
COMMANDS = re.findall(r"^python examples/(\w+)\.py ((?:.*\\\n)*.*)$", README.read_text(encoding="utf-8"), re.MULTILINE)


class Parsed(Exception):
    pass


@pytest.mark.parametrize("name, options", COMMANDS, ids=[name for name, _ in COMMANDS])
def test_command_lines(example, monkeypatch, name, options):
    main = example(name)
    module = sys.modules[main.__module__]
    parse = module.parse_arguments

    def stop(*arguments):
        raise Parsed(parse(*arguments))

    monkeypatch.setattr(module, "parse_arguments", stop)
    with pytest.raises(Parsed) as parsed:
        main([*shlex.split(options.replace("\\\n", " ")), "--use_cpu", "true"])
    _, model, args = parsed.value.args[0]
    assert model.model_name_or_path and args.do_train and args.sam_rho == 0.01


def test_there_is_a_command_for_each():
    assert {name for name, _ in COMMANDS} == {path.stem for path in README.parent.glob("*.py")}


@pytest.mark.parametrize("name, own", [("sft", "--packing"), ("seq2seq", "--predict_with_generate")])
def test_help_shows_the_options_of_the_trainer(example, capsys, name, own):
    with pytest.raises(SystemExit) as stop:
        example(name)(["--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    data, training = shown.partition("\nTraining:\n")[::2]
    assert own in training and own not in data
    assert "--adam_beta1" not in shown

"""Options that hold objects, and how programs end that are used wrongly or fail."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from sam_hf import SAMTrainingArguments
from sam_hf.command_line import parse_arguments, run
from sam_hf.errors import DivergedError, UsageError
from sam_hf.inputs.options import DataArguments, ModelArguments


def parse(*argv: str):
    return parse_arguments([DataArguments, ModelArguments, SAMTrainingArguments], list(argv), "")


@pytest.mark.parametrize("name", ["fsdp_config", "accelerator_config", "deepspeed"])
@pytest.mark.parametrize(
    "content, message", [(None, "cannot be read: No such file"), ("{", "it is not valid JSON"), ("[1]", "an object")]
)
def test_an_option_that_names_a_file_of_json(tmp_path, name, content, message):
    path = tmp_path / "file.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UsageError) as error:
        parse("--model_name_or_path", "folder", "--fsdp", "full_shard", f"--{name}", str(path))
    assert str(error.value).startswith(f"{name}={path} ") and message in str(error.value)


@pytest.mark.parametrize("name", ["lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "sam_method_kwargs"])
@pytest.mark.parametrize("value", ["word", '{"a"', "3", "[1]"])
def test_an_option_that_is_an_object(name, value):
    with pytest.raises(UsageError) as error:
        parse("--model_name_or_path", "folder", f"--{name}", value)
    assert str(error.value).startswith(f"{name}={value} is not allowed: it ")


def test_objects_of_the_command_line(tmp_path):
    (tmp_path / "accelerate.json").write_text('{"split_batches": true}')
    options = ["--accelerator_config", str(tmp_path / "accelerate.json"), "--lr_scheduler_kwargs", '{"num_cycles": 2}']
    args = parse("--model_name_or_path", "folder", *options)[2]
    assert args.accelerator_config.split_batches and args.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize("error", [OSError(2, "No such file"), ImportError("no package"), RuntimeError("no\ndevice")])
def test_arguments_that_cannot_be_made(error):
    @dataclass
    class Fails:
        number: int = 1

        def __post_init__(self):
            raise error

    with pytest.raises(UsageError) as raised:
        parse_arguments([Fails], [], None)
    assert str(error) in str(raised.value)


def test_an_error_of_use_is_one_line_and_status_2(capsys):
    def main():
        raise UsageError("two\n  lines")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: two lines\n"


def test_numbers_that_are_not_finite_are_one_line_and_status_1(capsys):
    def main():
        raise DivergedError("the loss is\n  NaN")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: the loss is NaN\n"


def test_other_errors_keep_their_traceback():
    def main():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        run(main)

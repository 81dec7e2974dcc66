"""The `sam_*` fields: what they refuse, and all ways to make and change them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import fields

import pytest
from tiny import assert_same, perceptron, points, snapshot, trained, trainer_of
from transformers import HfArgumentParser, TrainingArguments

from sam_hf import SAMArguments, SAMSeq2SeqTrainingArguments, SAMTrainer, SAMTrainingArguments

WRONG = [
    ("sam_method", "sgd", "none, sam"),
    ("sam_method", None, "none, sam"),
    ("sam_rho", -0.05, "finite number >= 0"),
    ("sam_rho", math.nan, "finite number >= 0"),
    ("sam_rho", math.inf, "finite number >= 0"),
    ("sam_rho", "large", "finite number >= 0"),
    ("sam_rho", True, "finite number >= 0"),
    ("sam_p", 1.0, "1 < p <= inf"),
    ("sam_p", 0.5, "1 < p <= inf"),
    ("sam_p", math.nan, "1 < p <= inf"),
    ("sam_p", "two", "1 < p <= inf"),
    ("sam_ascent_steps", 0, "integer >= 1"),
    ("sam_ascent_steps", 1.5, "integer >= 1"),
    ("sam_ascent_steps", True, "integer >= 1"),
    ("sam_m", 0, "integer >= 1"),
    ("sam_m", -4, "integer >= 1"),
    ("sam_m", 2.0, "integer >= 1"),
    ("sam_batch_norm", "last", "first, frozen, both"),
    ("sam_sync_perturbation", "yes", "true or false"),
    ("sam_replay_rng", 1, "true or false"),
    ("sam_stochastic_rounding", None, "true or false"),
]


@pytest.mark.parametrize("make", [SAMArguments, SAMTrainingArguments, SAMSeq2SeqTrainingArguments])
@pytest.mark.parametrize(("name", "value", "allowed"), WRONG)
def test_wrong_value_names_field_value_and_what_is_allowed(make, name, value, allowed):
    with pytest.raises(ValueError) as error:
        make(**{name: value})
    message = str(error.value)
    assert f"{name}={value!r}" in message
    assert allowed in message
    assert "\n" not in message


# Micro-batches of 8, windows of 32
@pytest.mark.parametrize("m", [3, 5, 12, 20, 40, 64])
def test_group_that_does_not_fit_the_batches(m):
    with pytest.raises(ValueError, match=rf"sam_m={m} .*per_device_train_batch_size=8.*32 examples"):
        SAMTrainingArguments("out", per_device_train_batch_size=8, gradient_accumulation_steps=4, sam_m=m)


@pytest.mark.parametrize("m", [1, 2, 4, 8, 16, 24, 32, None])
def test_group_that_fits(m):
    SAMTrainingArguments("out", per_device_train_batch_size=8, gradient_accumulation_steps=4, sam_m=m)


def test_limits_of_what_is_allowed():
    args = SAMArguments(sam_rho=0, sam_p=math.inf, sam_ascent_steps=1)
    assert (args.sam_rho, args.sam_p) == (0, math.inf)


def test_plain_training_arguments_run_the_defaults(tmp_path):
    model, expected = perceptron(), perceptron()
    plain = TrainingArguments(
        str(tmp_path),
        use_cpu=True,
        train_sampling_strategy="sequential",
        max_steps=6,
        per_device_train_batch_size=4,
        learning_rate=0.05,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
    )
    trainer = SAMTrainer(model=model, args=plain, train_dataset=points(32))
    trainer.train()
    assert trainer.state.log_history[1]["sam_rho"] > 0
    trained(expected, points(32), tmp_path, sam_rho=None, sam_rho_schedule="auto")
    assert_same(snapshot(model), snapshot(expected))


def test_command_line():
    (args,) = HfArgumentParser(SAMTrainingArguments).parse_args_into_dataclasses(
        "--output_dir out --sam_method sam --sam_rho 0.1 --sam_p inf --sam_ascent_steps 2 --sam_m 4 --sam_batch_norm "
        "frozen --sam_sync_perturbation --sam_replay_rng false --sam_stochastic_rounding".split()
    )
    assert (args.sam_method, args.sam_rho, args.sam_p, args.sam_ascent_steps) == ("sam", 0.1, math.inf, 2)
    assert (args.sam_m, args.sam_batch_norm) == (4, "frozen")
    assert (args.sam_sync_perturbation, args.sam_replay_rng, args.sam_stochastic_rounding) == (True, False, True)
    (defaults,) = HfArgumentParser(SAMTrainingArguments).parse_args_into_dataclasses(["--output_dir", "out"])
    assert (defaults.sam_method, defaults.sam_rho, defaults.sam_m, defaults.sam_replay_rng) == (
        "sam",
        None,
        None,
        True,
    )


@pytest.mark.parametrize("make", [SAMTrainingArguments, SAMSeq2SeqTrainingArguments])
def test_first_positional_argument_is_the_output_folder(make):
    assert make("somewhere", sam_rho=0.1).output_dir == "somewhere"


@pytest.mark.parametrize(
    ("given", "meant"), [('["query", "key"]', ["query", "key"]), ("[qk].*", "[qk].*"), (None, "all")]
)
def test_target_modules_as_one_string(given, meant):
    assert SAMArguments(sam_target_modules=given).sam_target_modules == meant


@pytest.mark.parametrize("name", [field.name for field in fields(SAMArguments)])
def test_help_on_the_command_line_is_the_first_paragraph_of_the_docstring(name):
    text = SAMTrainingArguments.__dataclass_fields__[name].metadata["help"]
    assert text.isascii() and "`" not in text, "a terminal shows it as it is"
    assert text.endswith((".", ")")) and len(text.split()) > 4
    assert text in " ".join(SAMArguments.__doc__.replace("`", "").split())


def test_dict_and_json():
    args = SAMTrainingArguments("out", sam_rho=0.1, sam_m=4)
    assert args.to_dict()["sam_rho"] == 0.1
    assert json.loads(args.to_json_string())["sam_m"] == 4
    assert "sam_batch_norm" in args.to_sanitized_dict()


def test_arguments_are_read_when_training_runs(tmp_path):
    model, expected = perceptron(), perceptron()
    trainer = trainer_of(model, points(32), tmp_path, sam_rho=0.01)
    trainer.args.sam_rho = 0.3
    trainer.train()
    assert trainer.state.log_history[0]["sam_rho"] == 0.3
    trained(expected, points(32), tmp_path, sam_rho=0.3)
    assert_same(snapshot(model), snapshot(expected))


def test_wrong_value_set_later_is_refused_when_training_runs(tmp_path):
    trainer = trainer_of(perceptron(), points(32), tmp_path)
    trainer.args.sam_rho = -1.0
    with pytest.raises(ValueError, match=r"sam_rho=-1\.0"):
        trainer.train()


def test_import_alone_loads_neither_torch_nor_transformers():
    code = "import sys, sam_hf; sys.exit(any(m in sys.modules for m in ('torch', 'transformers', 'datasets')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

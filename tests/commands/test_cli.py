"""The options of a YAML file and of the command line, the help, and how programs end."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from sam_hf import SAMTrainingArguments
from sam_hf.command_line import parse_arguments
from sam_hf.command_line.config import read_yaml
from sam_hf.errors import UsageError
from sam_hf.inputs.options import DataArguments, ModelArguments


def parse(*argv: str):
    return parse_arguments([DataArguments, ModelArguments, SAMTrainingArguments], argv, "A program.")


@pytest.fixture
def config(tmp_path):
    def write(text: str) -> str:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def test_config_and_overriding_options(config):
    path = config(
        "model_name_or_path: folder\n"
        "train_file: train.csv\n"
        "do_train: true\n"
        "sam_replay_rng: false\n"
        "lora_target_modules: [query, value]\n"
        "learning_rate: 2e-5\n"
        "sam_rho: 0.1\n"
        "label_column: null\n"
        "lr_scheduler_kwargs: {num_cycles: 2}\n"
    )
    data, model, args = parse("--sam_rho", "0.02", "--config", path, "--max_train_samples=7")
    assert (data.train_file, data.label_column, data.max_train_samples) == ("train.csv", None, 7)
    assert model.lora_target_modules == ["query", "value"]
    assert (args.do_train, args.sam_replay_rng) == (True, False)
    assert (args.learning_rate, args.sam_rho) == (2e-5, 0.02)
    assert args.lr_scheduler_kwargs == {"num_cycles": 2}


@pytest.mark.parametrize(
    "text, expected",
    [
        ("[query, value]", ["query", "value"]),
        ("[norm]", ["norm"]),  # a suffix of module names, and not the word for all normalisation layers
        ("norm", "norm"),
        ("null", "all"),
        ("'[\"query\"]'", ["query"]),
    ],
)
def test_list_for_an_option_of_one_word(config, text, expected):
    path = config(f"model_name_or_path: folder\nreport_to: [none]\nsam_target_modules: {text}\n")
    args = parse("--config", path)[2]
    assert args.sam_target_modules == expected
    assert args.report_to == []


TWO = ["tensorboard", "trackio"]


@pytest.mark.parametrize(
    "text, words, expected",
    [
        ("seed: 1", ["--report_to", *TWO, "--do_train"], TWO),
        ("seed: 1", ["--report_to", "tensorboard"], ["tensorboard"]),
        ("report_to: [tensorboard, trackio]", [], TWO),
        ("report_to: [tensorboard]", [], ["tensorboard"]),
        ("report_to: tensorboard", [], ["tensorboard"]),
        ("report_to: []", [], []),
        ("report_to: [tensorboard, trackio]", ["--report_to", "none"], []),
        ("report_to: none", ["--report_to", *TWO], TWO),
    ],
)
def test_several_trackers(config, text, words, expected):
    args = parse("--config", config(f"model_name_or_path: folder\n{text}\n"), *words)[2]
    assert args.report_to == expected


@pytest.mark.parametrize(
    "words, expected",
    [
        (["attention"], "attention"),  # a regular expression for whole names
        (["[qk].*"], "[qk].*"),
        (["query", "value"], ["query", "value"]),  # parts of names
        (['["query"]'], ["query"]),
    ],
)
def test_modules_as_a_word_or_a_list(words, expected):
    args = parse("--model_name_or_path", "folder", "--optim_target_modules", *words)[2]
    assert args.optim_target_modules == expected


def test_several_suffixes_of_perturbed_modules():
    args = parse("--model_name_or_path", "folder", "--sam_target_modules", "query", "value")[2]
    assert args.sam_target_modules == ["query", "value"]


def test_a_list_of_one_in_a_config_stays_a_list(config):
    path = config("model_name_or_path: folder\noptim_target_modules: [query]\n")
    assert parse("--config", path)[2].optim_target_modules == ["query"]


def test_config_with_an_equals_sign(config):
    assert parse("--config=" + config("model_name_or_path: folder\nseed: 5\n"))[2].seed == 5


@pytest.mark.parametrize(
    "text, name, expected",
    [
        ("eval_strategy: no", "eval_strategy", "no"),
        ("save_strategy: 'no'", "save_strategy", "no"),
        ("sam_replay_rng: no", "sam_replay_rng", False),
        ("do_predict: yes", "do_predict", True),
        ("sam_replay_rng: off", "sam_replay_rng", False),
        ("greater_is_better: False", "greater_is_better", False),
        ("do_train: [true]", "do_train", True),
        ("learning_rate: 1e-4", "learning_rate", 1e-4),
        ("learning_rate: '1e-4'", "learning_rate", 1e-4),
        ("sam_rho: 3", "sam_rho", 3.0),
        ("sam_p: .inf", "sam_p", float("inf")),
        ("seed: [7]", "seed", 7),
        ("run_name: 2020-01-01", "run_name", "2020-01-01"),
        ("lr_scheduler_kwargs: {min_lr: 1e-5}", "lr_scheduler_kwargs", {"min_lr": 1e-5}),
        ("sam_method: asam\nsam_method_kwargs: {eta: 1e-2}", "sam_method_kwargs", {"eta": 0.01}),
        ("sam-rho: 0.3", "sam_rho", 0.3),
        ("debug: [underflow_overflow]", "debug", ["underflow_overflow"]),
        ("optim_target_modules: null", "optim_target_modules", None),
        ("optim_target_modules: []", "optim_target_modules", []),
    ],
)
def test_values_of_a_config(config, text, name, expected):
    value = getattr(parse("--model_name_or_path", "folder", "--config", config(text))[2], name)
    assert value == expected and isinstance(value, type(expected))


@pytest.mark.parametrize(
    "text, words, expected",
    [
        ("sam_replay_rng: true", ["--no_sam_replay_rng"], False),
        ("sam_replay_rng: false", ["--sam_replay_rng"], True),
        ("sam_replay_rng: false", ["--sam_replay_rng", "true"], True),
        ("sam_replay_rng: false", [], False),
    ],
)
def test_both_flags_of_a_boolean(config, text, words, expected):
    assert parse("--model_name_or_path", "folder", "--config", config(text), *words)[2].sam_replay_rng == expected


@dataclass
class Numbers:
    """An option that is required, one with another name, and a list of numbers."""

    folder: str
    size: int = field(default=1, metadata={"aliases": ["--length"]})
    m: list[int] = field(default_factory=lambda: [8, 32])


@pytest.mark.parametrize(
    "text, expected",
    [
        ("folder: a", Numbers("a")),
        ("folder: 1\nlength: 4\nm: 16", Numbers("1", 4, [16])),
        ("folder: a\nm: [1, 2]", Numbers("a", m=[1, 2])),
        ("folder: a\nm: []", Numbers("a")),
    ],
)
def test_a_dataclass_from_a_config(config, text, expected):
    assert parse_arguments([Numbers], ["--config", config(text)], None) == (expected,)


def test_a_wrong_element_of_a_list(config):
    path = config("folder: a\nm: [8, many]")
    with pytest.raises(UsageError) as error:
        parse_arguments([Numbers], ["--config", path, "--m", "4"], None)
    assert str(error.value) == f"{path}: m: invalid int value: 'many'"


def test_a_plan_is_read_as_yaml_with_yes_and_no_as_text(config):
    path = config("equal_compute: no\nlabel_noise: [0, 1e-1, 1.5E2, -.5e+1]\nbase: {do_train: true, seed: null}\n")
    assert read_yaml(path) == {
        "equal_compute": "no",
        "label_noise": [0, 0.1, 150.0, -5.0],
        "base": {"do_train": True, "seed": None},
    }


@pytest.mark.parametrize(
    "text, message",
    [
        ("sam_rho: wide", "sam_rho: invalid float value: 'wide'"),
        ("max_steps: 1e3", "max_steps: invalid int value: '1000.0'"),
        ("sam_method: sharp", "sam_method: invalid choice: 'sharp' (choose from "),
        ("eval_strategy: false", "eval_strategy: invalid choice: 'False' (choose from "),
        ("do_train: maybe", "do_train: Truthy value expected: got maybe but expected one of yes/no, "),
        ("do_train: [true, false]", "do_train takes one value: [true, false] holds 2"),
        ("sam_rho: -1", "sam_rho=-1.0 is not allowed"),
        ("label_noise: 2", "label_noise=2.0 is not allowed"),
        ("no_sam_replay_rng: true", "unknown option no_sam_replay_rng: did you mean sam_replay_rng?"),
        ("config: other.yaml", "unknown option config: "),
        ("1: 2", "unknown option 1: "),
    ],
)
def test_an_error_in_a_config_names_file_and_key(config, text, message):
    path = config(text)
    with pytest.raises(UsageError) as error:
        parse("--model_name_or_path", "folder", "--config", path)
    assert str(error.value).startswith(f"{path}: {message}")


@pytest.mark.parametrize("words", [["--sam_rho", "-2"], ["--sam_rho=-2"], ["--sam-rho=-2"]])
def test_a_wrong_value_of_the_command_line_is_not_blamed_on_the_config(config, words):
    with pytest.raises(UsageError, match=r"^sam_rho=-2.0 is not allowed"):
        parse("--model_name_or_path", "folder", "--config", config("sam_rho: -1"), *words)


@pytest.mark.parametrize(
    "text, message",
    [
        ("sam_roh: 0.1", "unknown option sam_roh: did you mean sam_rho?"),
        ("qqqqqq: 1", "unknown option qqqqqq: see --help"),
        ("- sam_rho", "must hold"),
        ("sam_rho: [1", "cannot be read"),
        ("project: [one, other]", 'project takes one value: ["one", "other"] holds 2'),
    ],
)
def test_config_that_cannot_be_used(config, text, message):
    with pytest.raises(UsageError) as error:
        parse("--model_name_or_path", "folder", "--config", config(text))
    assert message in str(error.value)


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--config"], "--config needs the name of a YAML file"),
        (["--config", "--seed", "1"], "--config needs the name of a YAML file"),
        (["--config", "nowhere.yaml"], "nowhere.yaml cannot be read"),
        (["--sam_roh=1"], "did you mean sam_rho?"),
        (["--sam_rho", "wide"], "wide"),
        (["--sam_rho", "-1"], "sam_rho=-1.0 is not allowed"),
        (["--sam_method", "sharp"], "sharp"),
        (["--max_train_samples", "0"], "max_train_samples=0 is not allowed"),
        (["--label_noise", "1"], "label_noise=1.0 is not allowed"),
    ],
)
def test_options_that_cannot_be_used(argv, message):
    with pytest.raises(UsageError) as error:
        parse("--model_name_or_path", "folder", *argv)
    assert message in str(error.value)


def test_options_are_not_abbreviated():
    with pytest.raises(UsageError, match="unknown option --model_name"):
        parse("--model_name", "folder", "--model_name_or_path", "folder")


def test_model_is_required():
    with pytest.raises(UsageError, match="model_name_or_path is missing"):
        parse()


@pytest.mark.parametrize("option, everything", [("--help", False), ("--help_all", True)])
def test_help(capsys, option, everything):
    with pytest.raises(SystemExit) as stop:
        parse(option)
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    for title in ("Data", "Model", "Sharpness-Aware Minimization", "Training"):
        assert f"{title}:" in shown
    for name in ("--sam_rho", "--train_file", "--lora_r", "--learning_rate", "--config"):
        assert name in shown
    assert ("--adam_beta1" in shown) == everything


def test_help_shows_the_values_of_the_config(config, capsys):
    with pytest.raises(SystemExit):
        parse("--config", config("sam_rho: 0.07"), "--help")
    assert "(default: 0.07)" in " ".join(capsys.readouterr().out.split())

"""Options from a YAML file and the command line, and the help."""

from __future__ import annotations

import pytest

from sam_hf import SAMTrainingArguments
from sam_hf.command_line.parsing import parse_arguments, run
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
        (["--config"], "--config needs"),
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


def test_an_error_of_use_is_one_line_and_status_2(capsys):
    def main():
        raise UsageError("two\n  lines")

    with pytest.raises(SystemExit) as stop:
        run(main)
    assert stop.value.code == 2
    assert capsys.readouterr().err == "error: two lines\n"


def test_other_errors_keep_their_traceback():
    def main():
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        run(main)

"""The scripts' option `--sharpness_every_eval`, from the command line to the files that a run writes."""

from __future__ import annotations

import json

import pytest

from sam_hf.errors import UsageError


@pytest.fixture
def program(finetune_text, bert, text_files, tmp_path):
    """Run the text script in this process with this option and others."""
    shared = [
        *("--model_name_or_path", bert, "--train_file", text_files["train"], "--output_dir", tmp_path),
        *("--validation_file", text_files["validation"], "--use_cpu", "--report_to", "none", "--sharpness_every_eval"),
    ]
    return lambda options: finetune_text.main([*map(str, shared), *options.split()])


def test_measured_at_each_evaluation(program, tmp_path, capsys):
    program("--do_train --do_eval --eval_on_start --eval_strategy epoch --num_train_epochs 1 --sharpness_examples 8")
    assert "λmax of the Hessian, last evaluation: " in capsys.readouterr().out
    history = json.loads((tmp_path / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    values = [entry["eval_sharpness_lambda_max"] for entry in history if "eval_loss" in entry]
    # At the start and at the end of the epoch
    assert len(values) == 2 and values[0] != values[1]
    written = json.loads((tmp_path / "all_results.json").read_text(encoding="utf-8"))
    assert written["eval_sharpness_lambda_max"] == values[1]
    assert written["eval_sharpness_m"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--do_eval", "sharpness_every_eval measures the loss of the training examples: give do_train too"),
        ("--do_train --bf16_full_eval", "bf16_full_eval=True is not allowed with sharpness_every_eval"),
        ("--do_train --sharpness_examples 0", "sharpness_examples=0"),
    ],
)
def test_refused_as_wrong_use(program, options, message):
    with pytest.raises(UsageError, match=message):
        program(options)

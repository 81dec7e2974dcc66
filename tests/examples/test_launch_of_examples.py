"""The examples as commands: in one process, and in two processes under torchrun."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

QUIET = "--report_to none --disable_tqdm true --use_cpu true --save_strategy no --logging_steps 1".split()


def test_a_command_with_a_configuration(command, bert, tag_files, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(
        f"model_name_or_path: {bert}\n"
        f"train_file: {tag_files['train']}\n"
        f"output_dir: {tmp_path / 'output'}\n"
        "do_train: true\n"
        "max_steps: 2\n"
        "sam_target_modules: [query, value]\n",
        encoding="utf-8",
    )
    run = command("examples/token_classification.py", "--config", config, *QUIET, "--sam_rho", 0.02)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "ρ: 0.02" in run.stdout
    assert "label noise" not in run.stdout
    assert json.loads((tmp_path / "output" / "all_results.json").read_text(encoding="utf-8"))["train_loss"] > 0


def test_wrong_use_as_a_command(command):
    run = command("examples/seq2seq.py", "--model_name_or_path", "t5-small", "--sam_method", "sharp")
    assert run.returncode == 2
    assert len(run.stderr.strip().splitlines()) == 1
    assert "sharp" in run.stderr


@pytest.mark.distributed
def test_two_processes_equal_one_with_their_batches_together(command, example, t5, pair_files, tmp_path):
    words = ["--model_name_or_path", t5, "--train_file", pair_files["train"], "--validation_file"]
    words += [pair_files["validation"], "--do_train", "--do_eval", "--predict_with_generate", "--max_steps", 2, *QUIET]
    words += ["--optim", "sgd", "--learning_rate", 0.1, "--sam_rho", 0.1, "--sam_sync_perturbation"]
    words += ["--train_sampling_strategy", "sequential", "--output_dir"]
    alone = [*words, tmp_path / "one", "--per_device_train_batch_size", 8]
    example("seq2seq")([str(word) for word in alone])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", 2, "examples/seq2seq.py"]
    run = command(*launch, *words, tmp_path / "two", "--per_device_train_batch_size", 4)
    assert run.returncode == 0, run.stderr[-6000:]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=0, atol=2e-6)
    figures = [
        json.loads((tmp_path / name / "eval_results.json").read_text(encoding="utf-8")) for name in ("one", "two")
    ]
    assert figures[1]["eval_chrf"] == pytest.approx(figures[0]["eval_chrf"])

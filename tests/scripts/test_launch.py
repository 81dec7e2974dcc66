"""The configurations for `accelerate launch`: the script runs with DDP's on the CPU, and Trainer reads FSDP2's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = pytest.mark.distributed
REPOSITORY = Path(__file__).parents[2]
CONFIGS = REPOSITORY / "configs" / "accelerate"


@pytest.fixture(scope="module")
def options(bert, text_files) -> list[str]:
    values = {
        "model_name_or_path": bert,
        "train_file": text_files["train"],
        "validation_file": text_files["validation"],
        "do_train": True,
        "do_eval": True,
        "max_steps": 4,
        "gradient_accumulation_steps": 2,
        "train_sampling_strategy": "sequential",
        "max_train_samples": 32,
        # SGD, because Adam's first steps are the sign of the gradient, which rounding can change
        "optim": "sgd",
        "learning_rate": 0.1,
        "sam_rho": 0.1,
        "sam_sync_perturbation": True,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


@pytest.fixture(scope="module")
def one_process(finetune_text, options, tmp_path_factory) -> dict[str, torch.Tensor]:
    out = tmp_path_factory.mktemp("one_process")
    finetune_text.main([*options, "--per_device_train_batch_size", "8", "--output_dir", str(out)])
    return load_file(out / "model.safetensors")


def test_two_processes_equal_one_with_their_batches_together(options, one_process, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / "ddp.yaml")]
    script = [str(REPOSITORY / "scripts" / "finetune_text.py"), *options, "--per_device_train_batch_size", "4"]
    answer = subprocess.run(
        [*command, *script, "--output_dir", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=180,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
    )
    assert answer.returncode == 0, answer.stderr[-6000:]
    together = load_file(tmp_path / "model.safetensors")
    assert together.keys() == one_process.keys()
    for name, expected in one_process.items():
        torch.testing.assert_close(together[name], expected, rtol=0, atol=2e-6)


def test_the_fsdp2_configuration_gives_what_trainer_reads(monkeypatch):
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    arguments = launch_command_parser().parse_args(["--config_file", str(CONFIGS / "fsdp2.yaml"), "script.py"])
    arguments, _, _ = _validate_launch_command(arguments)
    for name, value in prepare_multi_gpu_env(arguments).items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()
    assert os.environ["ACCELERATE_USE_FSDP"] == "true"
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert "FULL_STATE_DICT" in str(plugin.state_dict_type)
    assert plugin.auto_wrap_policy is not None

"""FSDP2 in Trainer, which needs accelerators for it, gives the unsharded result and resumes exactly."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from fsdp2_device_worker import make, whole_weights

pytestmark = [pytest.mark.gpu, pytest.mark.distributed]


def sharded_result(out: Path, ranks: int, **options: int) -> dict:
    tests = str(Path(__file__).parents[1] / "support")
    answer = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)]
        + [str(Path(__file__).parent / "fsdp2_device_worker.py"), str(out)]
        + [f"{name}={value}" for name, value in options.items()],
        capture_output=True,
        text=True,
        timeout=600,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])),
    )
    assert answer.returncode == 0, answer.stderr[-4000:]
    return torch.load(out / "sharded.pt")


def unsharded_weights(out: Path, **options: int) -> dict[str, torch.Tensor]:
    trainer = make(out, False, **options)
    trainer.train()
    return whole_weights(trainer)


# One rank sees the batches of a single process, so the sharded code is compared exactly
@pytest.mark.parametrize("options", [{}, {"sam_m": 4}, {"sam_ascent_steps": 2}], ids=str)
def test_equals_the_unsharded_run_and_resumes(tmp_path, options):
    result = sharded_result(tmp_path, 1, **options)
    for name, tensor in unsharded_weights(tmp_path / "whole", **options).items():
        torch.testing.assert_close(result["weights"][name], tensor, rtol=1e-4, atol=1e-5)
        assert torch.equal(result["resumed"][name], result["weights"][name])
    assert [entry["sam_skipped"] for entry in result["log"] if "loss" in entry] == [0.0] * 6


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_ranks_equal_one_process_with_twice_the_batch(tmp_path):
    result = sharded_result(tmp_path, 2)
    for name, tensor in unsharded_weights(tmp_path / "whole", per_device_train_batch_size=8).items():
        torch.testing.assert_close(result["weights"][name], tensor, rtol=1e-3, atol=1e-4)

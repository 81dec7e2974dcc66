"""Two real processes on this machine, for every test of this folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
RANKS = 2
# A rank that waits for a collective that the other never enters would hang: the timeout is part of the test
TIMEOUT = 240


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), str(FOLDER.parent), str(FOLDER)]),
    }


@pytest.fixture(scope="session")
def torchrun(environment, tmp_path_factory) -> Callable[[str], Path]:
    """`torchrun("worker.py")`: run it on two ranks and return the folder, its only argument, that it wrote to."""

    def run(worker: str) -> Path:
        out = tmp_path_factory.mktemp(Path(worker).stem)
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(RANKS)]
        answer = subprocess.run(
            [*command, str(FOLDER / worker), str(out)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env=environment,
        )
        assert answer.returncode == 0, answer.stderr[-6000:]
        return out

    return run

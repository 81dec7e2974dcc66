"""Two real processes on this machine, for every test of this folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
RANKS = 2
# A rank that waits for a collective that the other rank never enters would hang, so the timeout is part of the test
TIMEOUT = 240


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(FOLDER.parents[1]), str(FOLDER.parent / "support"), str(FOLDER)]),
    }


@pytest.fixture(scope="session")
def torchrun(environment, tmp_path_factory) -> Callable[[str], Path]:
    """Return a function that runs a worker on two ranks, and returns the folder that the worker wrote to."""

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


@pytest.fixture(scope="session")
def two_machines(environment, tmp_path_factory) -> Callable[[str], Path]:
    """Like `torchrun`, with two launches of `accelerate` that connect over a port, as on two machines."""

    def run(worker: str) -> Path:
        out = tmp_path_factory.mktemp(Path(worker).stem)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        config = FOLDER.parents[1] / "configs" / "accelerate" / "multi_node.yaml"
        command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
        command += ["--num_processes", "2", "--main_process_ip", "127.0.0.1", "--main_process_port", port]
        launches = [
            subprocess.Popen(
                [*command, "--machine_rank", str(rank), str(FOLDER / worker), str(out)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
                env=environment,
            )
            for rank in range(2)
        ]
        try:
            for launch in launches:
                _, error = launch.communicate(timeout=TIMEOUT)
                assert launch.returncode == 0, error[-6000:]
        finally:
            for launch in launches:
                launch.kill()
        return out

    return run

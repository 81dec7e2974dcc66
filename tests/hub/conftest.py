"""A Hub on loopback, and fixtures that connect this process or a program to it."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.hf_api
import huggingface_hub.utils._http
import pytest
import tiny
import torch
import transformers.utils.hub
from huggingface_hub import constants
from loopback_hub import LoopbackHub

from sam_hf import SAMTrainer

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def hub():
    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def connect(monkeypatch, tmp_path):
    """Return `connect(url, token)`. It acts as `HF_ENDPOINT`, `HF_TOKEN`, no `HF_HUB_OFFLINE` and a new `HF_HOME`."""

    def connect(url: str, token: str | None) -> None:
        home = tmp_path / "hf_home"
        for name, value in {
            "ENDPOINT": url,
            "HUGGINGFACE_CO_URL_TEMPLATE": url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        # These clients are created once, with the address of that time
        monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", url)
        # The client waits between its retries, about 20 seconds in total
        without_sleep = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
        monkeypatch.setattr(huggingface_hub.utils._http, "time", without_sleep)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        if token is not None:
            monkeypatch.setenv("HF_TOKEN", token)

    return connect


@pytest.fixture
def connected(hub, connect):
    connect(hub.url, hub.token)
    return hub


@pytest.fixture
def make(tmp_path):
    """Return a function that makes a trainer: a tiny BERT, three updates with a checkpoint each, pushed to `run`."""

    def make(model=None, name="run", trainer_class=SAMTrainer, callbacks=(), **changes):
        model = tiny.bert(dtype=torch.float32) if model is None else model
        settings = {
            "push_to_hub": True,
            "hub_always_push": True,
            "max_steps": 3,
            "save_strategy": "steps",
            "save_steps": 1,
            "sam_rho": 0.05,
        }
        options = {"trainer_class": trainer_class, "callbacks": callbacks, "eval_dataset": tiny.sentences(4)}
        return tiny.trainer_of(model, tiny.sentences(8), tmp_path / name, **options, **(settings | changes))

    return make


@pytest.fixture
def start_command(tmp_path):
    """Return a function that starts a program in its own process. Environment variables connect it to the Hub."""

    def start(words, url: str, token: str | None) -> subprocess.Popen:
        dropped = ("HF_TOKEN", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        environment = {key: value for key, value in os.environ.items() if key not in dropped}
        environment |= {
            "HF_ENDPOINT": url,
            "HF_HOME": str(tmp_path / "hf_home"),
            "HF_HUB_DISABLE_XET": "1",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(REPOSITORY),
        }
        if token is not None:
            environment["HF_TOKEN"] = token
        words = [str(word) for word in (shlex.split(words) if isinstance(words, str) else words)]
        if words[0] == "hf":
            words = [sys.executable, "-m", "huggingface_hub.cli.hf", *words[1:]]
        elif words[0].endswith(".py"):
            words = [sys.executable, str(REPOSITORY / words[0]), *words[1:]]
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)

    return start


@pytest.fixture
def run_command(start_command):
    """Return a function that starts a program and waits until it ends."""

    def run(words, url: str, token: str | None) -> subprocess.CompletedProcess:
        with start_command(words, url, token) as process:
            try:
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    return run

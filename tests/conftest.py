from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

# Before transformers is imported: the hub client reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

# What the tests of all folders share
sys.path.insert(0, str(Path(__file__).parent / "support"))
torch.set_num_threads(1)


def pytest_collection_finish():
    # Accelerate collects garbage at the start of every training run: a quarter of a second over all that torch and
    # transformers keep alive, ten times what a tiny model trains for
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

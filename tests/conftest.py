from __future__ import annotations

import os
import sys
from pathlib import Path

# Before transformers is imported: the hub client reads it once.
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

# `tiny` and `reference` for the tests in folders too
sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)


def pytest_collection_modifyitems(items):
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))

"""Trains one case of DDP, on any number of machines."""

from __future__ import annotations

import sys
from pathlib import Path

from ddp_edges import ACCUMULATED, Case, dataset, make_model
from ddp_edges_worker import run
from ranks import leave

if __name__ == "__main__":
    run("nodes", Case(ACCUMULATED), make_model(), dataset(64), Path(sys.argv[1]))
    leave()

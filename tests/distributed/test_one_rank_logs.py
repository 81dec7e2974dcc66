"""A callback may log on one rank only, as under plain Trainer: no rank waits for it, and no metric is lost."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.distributed


def test_a_log_on_one_rank_hangs_nobody(torchrun):
    out = torchrun("one_rank_logs_worker.py")
    first, second = (json.loads((out / f"{rank}.json").read_text()) for rank in (0, 1))
    own = [entry for entry in first if "mine" in entry]
    assert len(own) == 6 and not any("sam_rho" in entry for entry in own)
    logs = [[e for e in history if "loss" in e and "mine" not in e] for history in (first, second)]
    assert [entry["step"] for entry in logs[0]] == [2, 4, 6]
    assert all({"sam_rho", "sam_sharpness", "sam_ascent_grad_norm"} <= entry.keys() for entry in logs[0])
    assert logs[0] == logs[1]

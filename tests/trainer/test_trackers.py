"""The metrics of SAM and of sharpness arrive in trackers: a real run, and what each of them stored, read back."""

from __future__ import annotations

import json
import os
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from tracker_worker import SECRET

SUPPORT = Path(__file__).parents[1] / "support"
TRACKERS = [name for name in ("tensorboard", "trackio", "wandb") if find_spec(name) is not None]
OF_SAM = {
    *("train/sam_perturbed_loss", "train/sam_sharpness", "train/sam_ascent_grad_norm", "train/sam_rho"),
    *("train/sam_skipped", "train/sam_grad_cosine"),
}
OF_SHARPNESS = {"eval/sharpness_lambda_max", "eval/sharpness_m", "eval/sharpness_runtime"}
STEPS = {name: [2, 4, 6] for name in OF_SAM} | {name: [3, 6] for name in OF_SHARPNESS}
# metric -> its values by step
Stored = dict[str, dict[int, float]]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """One run that reports to all of them at once."""
    if not TRACKERS:
        pytest.skip("no tracker is installed")
    out = tmp_path_factory.mktemp("trackers")
    path = os.pathsep.join([str(SUPPORT.parents[1]), str(SUPPORT)])
    answer = subprocess.run(
        [sys.executable, str(SUPPORT / "tracker_worker.py"), str(out), *TRACKERS],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=out,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert answer.returncode == 0, answer.stderr[-6000:]
    return out


@pytest.fixture(scope="module")
def expected(run) -> Stored:
    """From Trainer's own history, by the names that its trackers use."""
    history = json.loads((run / "history.json").read_text(encoding="utf-8"))
    return collected(
        {f"{'eval' if 'eval_loss' in entry else 'train'}/{key.removeprefix('eval_')}": v for key, v in entry.items()}
        | {"step": entry["step"]}
        for entry in history
    )


def collected(entries) -> Stored:
    stored: Stored = {}
    for entry in entries:
        for name in (OF_SAM | OF_SHARPNESS) & entry.keys():
            stored.setdefault(name, {})[int(entry["step"])] = entry[name]
    return stored


def test_the_history_has_them_all(expected):
    assert {name: list(values) for name, values in expected.items()} == STEPS
    assert set(expected["train/sam_rho"].values()) == {0.125}
    assert all(value > 0 for value in expected["eval/sharpness_lambda_max"].values())


def test_tensorboard(run, expected):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    stored = {name: {e.step: e.value for e in events.Scalars(name)} for name in expected}
    assert stored.keys() == STEPS.keys()
    for name, values in expected.items():
        assert stored[name] == pytest.approx(values, rel=1e-6)  # float32
    (arguments,) = events.Tensors("args/text_summary")
    assert json.loads(arguments.tensor_proto.string_val[0])["sam_method"] == "gsam"


def test_trackio(run, expected):
    pytest.importorskip("trackio")
    (path,) = (run / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = [json.loads(row) for (row,) in database.execute("SELECT metrics FROM metrics ORDER BY id")]
        ((config,),) = database.execute("SELECT config FROM configs")
    assert collected({**row, "step": row["train/global_step"]} for row in rows) == expected
    assert json.loads(config)["sam_method"] == "gsam"


def test_wandb_offline(run, expected):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    (path,) = (run / "wandb").rglob("*.wandb")
    rows, config = [], {}
    for raw in wandb_records(path.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        history = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        if history:
            rows.append(history)
        config |= {item.key: json.loads(item.value_json) for item in record.config.update if item.key}
    assert collected({**row, "step": row["train/global_step"]} for row in rows) == expected
    assert config["sam_method"] == "gsam" and config["sam_rho"] == 0.125


def wandb_records(data: bytes) -> Iterator[bytes]:
    """LevelDB's log format: 7 bytes of W&B's own, then blocks of 32 KiB of pieces (checksum, length, kind, bytes)."""
    assert data[:4] == b":W&B"
    at, record = 7, b""
    while at + 7 <= len(data):
        room = (1 << 15) - at % (1 << 15)
        if room < 7:
            at += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield record
            record = b""


def test_no_tracker_stored_the_token(run):
    files = [path for path in run.rglob("*") if path.is_file()]
    assert len(files) > len(TRACKERS)
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]

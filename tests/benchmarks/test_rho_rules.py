"""The script that compares rules for the radius trains with them, and its results make the table."""

from __future__ import annotations

import json
import sys

import accuracy_tables
import pytest
import rho_rules


def test_rules_are_run_and_tabulated(tmp_path, monkeypatch):
    output = tmp_path / "rho_rules_text.json"
    setting = (2000, 0.4, 1e-4, 1, {})
    monkeypatch.setitem(rho_rules.SETTINGS, "text", [setting])
    rules = ["none", "fixed 0.01", "gradient 0.004", "step 0.1"]
    command = ["rho_rules.py", "--task", "text", "--examples", "64", "--seeds", "10", "--output", str(output)]
    monkeypatch.setattr(sys, "argv", [*command, "--rules", *rules])
    rho_rules.main()
    runs = json.loads(output.read_text())["runs"]
    assert sorted(run["rule"] for run in runs) == sorted(rules)
    assert all(0 <= run["kept_out"] <= 1 and 0 <= run["test"] <= 1 for run in runs)
    monkeypatch.setattr(accuracy_tables, "RESULTS", tmp_path)
    lines = [line for line in accuracy_tables.rules_table("text").splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in lines[2:]] == rules
    assert f"| {100 * runs[0]['kept_out']:.1f} |" in next(line for line in lines if f"| {runs[0]['rule']} |" in line)


def test_two_seeds_are_tabulated_with_their_range(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy_tables, "RESULTS", tmp_path)
    where = {"gpu": None, "cpu": "a CPU", "torch": "1", "transformers": "2", "accelerate": "3"}
    run = {"rule": "step 0.1", "examples": 500, "noise": 0.4, "lr": 1e-4, "extra": {}, "environment": where}
    runs = [run | {"seed": seed, "kept_out": value} for seed, value in ((10, 0.7), (11, 0.8))]
    (tmp_path / "rho_rules_text.json").write_text(json.dumps({"runs": runs}))
    lines = accuracy_tables.rules_table("text").splitlines()
    assert lines[2] == "| step 0.1 | 75.0 ± 5.0 | 75.0 |"
    assert lines[-1] == "Seeds 10, 11, ± half of the range over seeds; a CPU, torch 1, transformers 2, accelerate 3."


def test_more_images_than_there_are(tmp_path, monkeypatch):
    """Otherwise the runs would silently train on fewer images than the table says."""
    command = ["rho_rules.py", "--task", "image_sizes", "--output", str(tmp_path / "rho_rules_image_sizes.json")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setattr(rho_rules.multiprocessing, "get_context", lambda kind: pytest.fail("it started to train"))
    with pytest.raises(SystemExit, match="need 7000 training images, but there are 3000"):
        rho_rules.main()

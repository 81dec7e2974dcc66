"""Runs that fail or diverge: what is recorded of them, what the command says, and which means they are in."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from one_process_pool import PoolInThisProcess

from sam_hf.commands.compare import main
from sam_hf.compare import pool
from sam_hf.compare.read import read_plan
from sam_hf.compare.records import Records
from sam_hf.compare.summary import summarise
from sam_hf.compare.worker import WorkerSettings, execute_run


def test_a_run_that_fails_is_recorded_with_its_error(write_plan, base, tmp_path):
    plan = read_plan(write_plan(base={**base, "train_file": str(tmp_path / "gone.csv")}))
    settings = WorkerSettings(tmp_path, 0, None, None, False)
    content = execute_run(plan.final_run("sam", {}, 0.0, 0), settings)
    assert content["status"] == "failed"
    assert content["error"] == f"UsageError: the file {tmp_path / 'gone.csv'} does not exist"
    assert not list((tmp_path / "work").iterdir())


def change_labels(file: Path, label: str) -> None:
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[0], lines[1][:-1] + label, *lines[2:]]) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda base, file: base | {"train_file": str(file.with_name("gone.csv"))}, "gone.csv does not exist"),
        (lambda base, file: base | {"train_file": str(file), "label_column": "answer"}, "answer"),
        (lambda base, file: change_labels(file, "-1") or base | {"train_file": str(file)}, "-1"),
    ],
    ids=["missing file", "missing column", "label -1"],
)
def test_a_mistake_in_the_data_is_said_in_one_line(write_plan, base, tmp_path, capsys, monkeypatch, change, message):
    file = tmp_path / "train.csv"
    file.write_text(Path(base["train_file"]).read_text())
    plan = write_plan(base=change(base, file), seeds=[0], label_noise=[0])
    monkeypatch.setattr(pool, "Pool", PoolInThisProcess)
    with pytest.raises(SystemExit) as status:
        main([plan, "--output_dir", str(tmp_path / "out"), "--threads", "1"])
    assert status.value.code == 1
    printed = capsys.readouterr()
    [said] = {line.partition("UsageError: ")[2] for line in printed.err.splitlines() if line.startswith("failed: ")}
    assert message in said
    # It is said again by every later call, once for all runs that failed for the same reason
    with pytest.raises(SystemExit):
        main([plan, "--output_dir", str(tmp_path / "out"), "--threads", "1"])
    out = capsys.readouterr().out
    assert "2 runs failed. The errors are in" in out and f"  2 × UsageError: {said}" in out


@pytest.mark.parametrize("error", [SystemExit(1), FloatingPointError("the loss is\nnot finite")])
def test_a_run_that_stops_has_failed_and_is_in_no_mean(write_plan, tmp_path, monkeypatch, error):
    def stops(argv):
        raise error

    plan = read_plan(write_plan(label_noise=[0]))
    records = Records(tmp_path / "runs")
    for run in plan.final_runs({}):
        content = {"evaluations": [{"eval_accuracy": 0.9}], "train": {"train_runtime": 1.0}, "memory": None}
        records.add(run, content)
    monkeypatch.setattr("sam_hf.recipes.recipe_main", lambda name: stops)
    run = plan.final_run("sam", {}, 0.0, 1)
    record = records.add(run, execute_run(run, WorkerSettings(tmp_path, 0, None, None, False)))
    assert record["status"] == "failed" and "\n" not in record["error"]
    assert record["error"] in (
        "the recipe ended with exit status 1; the log of its worker says why",
        "FloatingPointError: the loss is not finite",
    )
    row = next(row for row in summarise(plan, records, []) if row.variant == "sam")
    assert (row.seeds, row.failed, row.samples["final"].n) == ((0,), (1,), 1)


def test_a_run_that_diverges_is_a_result_without_values(write_plan, tmp_path):
    plan = read_plan(write_plan(label_noise=[0]))
    run = plan.final_run("sam", {}, 0.0, 0)
    run = replace(run, options={**run.options, "learning_rate": 1e30})
    content = execute_run(run, WorkerSettings(tmp_path, 0, None, None, False))
    assert "status" not in content and math.isnan(content["evaluations"][-1]["eval_loss"])
    records = Records(tmp_path / "runs")
    records.add(plan.final_run("sam", {}, 0.0, 0), content)
    row = next(row for row in summarise(plan, records, []) if row.variant == "sam")
    assert (row.seeds, row.diverged, row.samples["final"].n) == ((0,), (0,), 0)

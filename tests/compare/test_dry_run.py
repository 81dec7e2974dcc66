"""What `sam-hf compare` says and refuses before it runs anything: what is done, the metric, and the threads."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from sam_hf.commands import compare
from sam_hf.commands.compare import main
from sam_hf.compare.read import read_plan
from sam_hf.compare.records import Records
from sam_hf.errors import UsageError

FINISHED = {"evaluations": [{"eval_accuracy": 0.5}], "train": {"train_runtime": 1.0}, "memory": None}
SEARCH = {"validation_split_percentage": 25, "seeds": [100, 101]}


def test_a_dry_run_says_what_is_done(write_plan, tmp_path, capsys):
    file, output = write_plan(), tmp_path / "out"
    plan, records = read_plan(file), Records(output / "runs")
    runs = plan.final_runs({})
    for run in runs[:3]:
        records.add(run, FINISHED)
    records.add(runs[3], {"status": "failed", "error": "made up"})
    records.add(replace(runs[0], options={"learning_rate": 1.0}), FINISHED)  # of another plan

    def lines(*options: str) -> list[str]:
        main([file, "--dry_run", "--output_dir", str(output), *options])
        return capsys.readouterr().out.splitlines()

    listed = lines()
    assert [line.split()[0] for line in listed[:8]] == ["done"] * 3 + ["failed"] + ["to"] * 4
    assert all(line.endswith(run.name) for line, run in zip(listed[:8], runs, strict=True))
    assert listed[8] == "8 runs: 3 done, 4 to do, 1 failed (--retry runs them again)"
    assert "8 runs: 3 done, 5 to do" in lines("--retry")
    alone = lines("--only", "sam")
    done = sum(run.variant == "sam" for run in runs[:3])
    assert alone[4].startswith(f"4 runs: {done} done")
    main([file, "--dry_run", "--output_dir", str(output)])
    assert f"{output / 'runs'} also has the records of 1 other run," in capsys.readouterr().err


def test_a_dry_run_knows_what_the_search_has_chosen(write_plan, tmp_path, capsys):
    file, output = (
        write_plan(methods={"adamw": {"sam_method": "none"}, "sam": {"sam_rho": [0.01, 0.1]}}, select=SEARCH),
        tmp_path / "out",
    )
    plan, records = read_plan(file), Records(output / "runs")
    for run in plan.selection_runs():
        if run.label_noise == 0:
            records.add(run, FINISHED)
    main([file, "--dry_run", "--output_dir", str(output)])
    lines = capsys.readouterr().out.splitlines()
    assert sum("sam_final_noise0_seed" in line for line in lines) == 2
    assert lines[-2:] == [
        "16 runs: 4 done, 12 to do",
        "8 runs of the search, 8 to report, 2 of them with what the search will choose",
    ]


def test_a_metric_that_earlier_runs_do_not_have_is_refused_before_more_runs(write_plan, tmp_path):
    records = Records(tmp_path / "out" / "runs")
    records.add(read_plan(write_plan()).final_runs({})[0], FINISHED)
    with pytest.raises(UsageError, match="metric=eval_f1_macro: the evaluation reports eval_accuracy"):
        main([write_plan(metric="eval_f1_macro"), "--output_dir", str(tmp_path / "out")])


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ("3", [], 3),
        ("3,2", ["--jobs", "2"], 3),
        ("3", ["--threads", "1"], 1),
        (None, ["--jobs", "2"], 4),
        ("", ["--jobs", "2"], 4),
        (None, ["--jobs", "99"], 1),
    ],
)
def test_threads_of_a_run(monkeypatch, given, options, expected):
    monkeypatch.setattr(compare, "_cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert compare._options(["plan.yaml", *options]).threads == expected


@pytest.mark.parametrize("given", ["0", "-1", "many", "2.5"])
def test_threads_that_are_no_number_are_refused(monkeypatch, given):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    with pytest.raises(
        UsageError, match=r"OMP_NUM_THREADS=.* is not allowed: it must be a whole number of at least 1"
    ):
        compare._options(["plan.yaml"])


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 2, 5})
        assert compare._cores() == 3


def test_a_dry_run_lists_and_writes_nothing(write_plan, tmp_path, capsys):
    methods = {"adamw": {"sam_method": "none"}, "sam": {"sam_rho": [0.01, 0.1]}}
    main([write_plan(methods=methods, select=SEARCH), "--dry_run", "--output_dir", str(tmp_path / "out")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8 + 4 + 2
    assert lines[-1].startswith("8 runs of the search, 8 to report, 4 of them")
    assert not (tmp_path / "out").exists()

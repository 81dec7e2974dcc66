"""Tests of the command with a real comparison on a tiny BERT: what it writes, and how it continues."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from scipy import stats

from sam_hf.commands.compare import main
from sam_hf.compare.read import read_plan
from sam_hf.compare.worker import WorkerSettings, execute_run
from sam_hf.errors import UsageError

REPOSITORY = Path(__file__).parents[2]


def runs_of(output: Path) -> dict[tuple[str, float, int], dict]:
    records = [json.loads(file.read_text()) for file in (output / "runs").glob("*.json")]
    return {(r["variant"], r["label_noise"], r["seed"]): r for r in records if r["purpose"] == "final"}


@pytest.fixture(scope="module")
def swept(tmp_path_factory, base):
    """Two variants, two seeds, two noise rates, and a bf16 variant whose settings must not reach later runs."""
    folder = tmp_path_factory.mktemp("swept")
    content = {
        "recipe": "text",
        "base": base,
        "methods": {
            "adamw": {"sam_method": "none"},
            "half precision": {"sam_method": "none", "bf16": True, "full_determinism": True},
            "sam": {"sam_method": "sam", "sam_rho": [0.01, 0.05]},
        },
        "baseline": "adamw",
        "seeds": [0, 1],
        "label_noise": [0, 0.4],
        "select": {"validation_split_percentage": 25, "seeds": [100]},
    }
    plan = folder / "plan.yaml"
    plan.write_text(yaml.safe_dump(content, sort_keys=False))
    main([str(plan), "--output_dir", str(folder / "out"), "--threads", "1"])
    return plan, folder / "out"


def test_every_run_is_recorded_with_its_epochs_and_costs(swept):
    runs = runs_of(swept[1])
    variants = ("adamw", "half precision", "sam")
    assert set(runs) == {(v, noise, seed) for v in variants for noise in (0.0, 0.4) for seed in (0, 1)}
    for (_, noise, seed), record in runs.items():
        assert record["status"] == "finished" and record["options"]["seed"] == seed
        assert [entry["epoch"] for entry in record["evaluations"]] == [1.0, 2.0]
        assert record["train"]["train_labels_replaced"] == round(96 * noise)
        assert record["steps"] == 24 and record["seconds"] > record["train"]["train_runtime"] > 0
        assert record["memory"]["peak"] > 50e6 and record["environment"]["torch"]
    assert runs["sam", 0.0, 0]["flos"] == 2 * runs["adamw", 0.0, 0]["flos"]
    assert "sam_sharpness" in runs["sam", 0.0, 0]["log"]


def test_runs_come_seed_by_seed_after_the_search(swept):
    log = (swept[1] / "logs" / "worker0.log").read_text()
    names = [line[4:] for line in log.splitlines() if line.startswith("=== ")]
    places = ["search" if "_select_" in name else name.split("_seed")[1].split("_")[0] for name in names]
    assert places == ["search"] * 4 + ["0"] * 6 + ["1"] * 6


def test_no_weights_or_folders_are_left(swept):
    files = [file for file in swept[1].rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".md", ".log", ".html", ".png", ".svg"}
    assert not list((swept[1] / "work").iterdir())


def test_a_run_in_a_warm_worker_is_the_run_alone(swept, tmp_path):
    """Other runs in the same process come before it, one of them with bf16 and another seed."""
    plan = read_plan(str(swept[0]))
    last = plan.final_run("adamw", {}, 0.4, 1)
    alone = execute_run(last, WorkerSettings(tmp_path, 0, None, None, False))
    keys = ("eval_accuracy", "eval_loss", "epoch", "step")
    recorded = runs_of(swept[1])["adamw", 0.4, 1]["evaluations"]
    assert [[e[key] for key in keys] for e in alone["evaluations"]] == [[e[key] for key in keys] for e in recorded]


def test_the_summary_is_what_the_records_say(swept):
    runs = runs_of(swept[1])
    result = json.loads((swept[1] / "compare.json").read_text(), parse_constant=pytest.fail)
    row = next(r for r in result["rows"] if (r["variant"], r["label_noise"]) == ("sam", 0.4))
    for moment, pick in (("final", lambda values: values[-1]), ("best", max)):
        values = {
            variant: [pick([e["eval_accuracy"] for e in runs[variant, 0.4, seed]["evaluations"]]) for seed in (0, 1)]
            for variant in ("sam", "adamw")
        }
        assert row["samples"][moment]["mean"] == pytest.approx(np.mean(values["sam"]))
        assert row["samples"][moment]["deviation"] == pytest.approx(np.std(values["sam"], ddof=1))
        difference = row["against_baseline"][moment]
        assert difference["mean"] == pytest.approx(np.mean(values["sam"]) - np.mean(values["adamw"]))
        if difference["p"] is not None and difference["mean"] != 0:
            assert difference["p"] == pytest.approx(stats.ttest_rel(values["sam"], values["adamw"]).pvalue)
    ratios = [
        runs["sam", 0.4, s]["train"]["train_runtime"] / runs["adamw", 0.4, s]["train"]["train_runtime"] for s in (0, 1)
    ]
    assert row["time_ratio"] == pytest.approx(np.median(ratios))
    assert row["compute"] == 4
    table = (swept[1] / "table.md").read_text()
    assert f"| sam (sam_rho={row['choice']['sam_rho']}) | 2 |" in table and "## Label noise 40%" in table


def test_what_is_finished_is_not_run_again_and_what_is_missing_is(swept, tmp_path, capsys):
    plan, output = swept
    files = sorted((output / "runs").glob("*.json"))
    before = {file: file.stat().st_mtime_ns for file in files}
    table = (output / "table.md").read_text()
    (output / "runs" / "adamw_half-written.json.123.tmp").write_text("{")  # of a process that was killed
    main([str(plan), "--output_dir", str(output)])
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert capsys.readouterr().out.strip() == table.strip()

    failed = next(file for file in files if file.name.startswith("adamw_final_noise0_seed0"))
    good = json.loads(failed.read_text())
    failed.write_text(json.dumps({**good, "status": "failed", "error": "OutOfMemoryError: made up"}))
    before[failed] = failed.stat().st_mtime_ns
    with pytest.raises(SystemExit) as status:
        main([str(plan), "--output_dir", str(output)])
    assert status.value.code == 1
    assert {file: file.stat().st_mtime_ns for file in files} == before
    assert "adamw | 1 (1 failed) |" in capsys.readouterr().out

    gone = next(file for file in files if file.name.startswith("sam_final_noise0.4_seed1"))
    record = json.loads(gone.read_text())
    gone.unlink()
    main([str(plan), "--output_dir", str(output), "--threads", "1", "--retry"])
    assert {file for file in files if file.stat().st_mtime_ns != before[file]} == {gone, failed}
    for file, old in ((gone, record), (failed, good)):
        assert json.loads(file.read_text())["evaluations"][-1]["eval_loss"] == old["evaluations"][-1]["eval_loss"]


def test_weights_are_kept_on_request(write_plan, tmp_path):
    from transformers import AutoModelForSequenceClassification

    run = read_plan(write_plan()).final_run("sam", {}, 0.0, 0)
    execute_run(run, WorkerSettings(tmp_path, 0, None, None, True))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "models" / run.name)
    assert model.config.num_labels == 2


@pytest.mark.slow
def test_a_metric_that_is_not_reported_stops_the_command(write_plan, tmp_path):
    plan = write_plan(metric="eval_bleu", methods={"adamw": {"sam_method": "none", "max_steps": 1}})
    with pytest.raises(UsageError, match="metric=eval_bleu: the evaluation reports eval_accuracy, eval_f1_macro"):
        main([plan, "--output_dir", str(tmp_path / "out"), "--threads", "1"])
    assert len(runs_of(tmp_path / "out")) == 1


def test_a_file_that_is_no_record_is_named(write_plan, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "cut-off.json").write_text('{"key": ')
    with pytest.raises(UsageError, match=r"cut-off\.json is not a record of a run"):
        main([write_plan(), "--output_dir", str(tmp_path)])


@pytest.mark.slow
def test_a_process_that_dies_fails_its_run_alone(write_plan, tmp_path, capsys):
    methods = {
        "adamw": {"sam_method": "none", "max_steps": 1},
        "dies": {"sam_method": "none", "max_steps": 1_000_000},
        "sam": {"sam_method": "sam", "max_steps": 1},
    }
    file = write_plan(methods=methods, seeds=[0], label_noise=[0])
    output = tmp_path / "out"
    work = output / "work" / read_plan(file).final_run("dies", {}, 0.0, 0).key

    def kill():
        wait_for(lambda: work.is_dir())
        for child in multiprocessing.active_children():
            child.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(SystemExit):
        main([file, "--output_dir", str(output), "--threads", "1"])
    killer.join()
    runs = {name: record for (name, _, _), record in runs_of(output).items()}
    assert {name: record["status"] for name, record in runs.items()} == {
        "adamw": "finished",
        "dies": "failed",
        "sam": "finished",
    }
    assert runs["dies"]["error"] == "its process ended with signal 9"
    assert "1 run failed" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="sessions are looked up in Linux's /proc")
def test_workers_end_with_the_command(write_plan, tmp_path):
    """Otherwise a run would go on while another command starts the same run in the same folder."""
    methods = {"adamw": {"sam_method": "none", "max_steps": 1_000_000}}
    file, output = write_plan(methods=methods, seeds=[0], label_noise=[0]), tmp_path / "out"
    command = [sys.executable, "-m", "sam_hf.commands.compare", file, "--output_dir", str(output)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.DEVNULL)
    wait_for(lambda: (output / "work").is_dir() and any((output / "work").iterdir()))
    process.kill()
    process.wait()
    try:
        wait_for(lambda: not running_in(session=process.pid), seconds=20)
    finally:
        if running_in(session=process.pid):
            os.killpg(process.pid, signal.SIGKILL)


def running_in(session: int) -> list[int]:
    """Return the processes of a session that are not zombies, from Linux's /proc."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, its_session = stat.read_text().rpartition(")")[2].split()[:4]
        except OSError:  # the process has just ended
            continue
        if int(its_session) == session and state != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_a_comparison_that_was_killed_goes_on(swept, tmp_path, sent):
    plan, output = tmp_path / "plan.yaml", tmp_path / "out"
    plan.write_text(swept[0].read_text())
    command = [sys.executable, "-m", "sam_hf.commands.compare", str(plan), "--output_dir", str(output), "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: len(list((output / "runs").glob("*.json"))) >= 3)
    os.killpg(process.pid, sent)
    _, errors = process.communicate(timeout=60)
    done = {file: file.read_bytes() for file in (output / "runs").glob("*.json")}
    assert 3 <= len(done) < 16
    if sent == signal.SIGINT:
        assert process.returncode == 130 and "the same command goes on" in errors and "Traceback" not in errors
    main([str(plan), "--output_dir", str(output), "--threads", "1"])
    assert all(file.read_bytes() == content for file, content in done.items())
    killed, whole = runs_of(output), runs_of(swept[1])
    assert killed.keys() == whole.keys()
    for key, record in killed.items():
        assert [e["eval_loss"] for e in record["evaluations"]] == [e["eval_loss"] for e in whole[key]["evaluations"]]


def wait_for(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition never became true"
        time.sleep(0.05)

"""The benchmarks of cost write results that the tables are made of. Each test takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import cost_cell
import cost_growth
import overhead
import pytest
import rivals
import step_time
import tables
import torch

from sam_hf.update.perturbation import Perturbation

ROOT = Path(__file__).parents[2]

RIVALS = ["davda54's SAM in Trainer", "davda54's SAM, hand-written loop"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    output = tmp_path_factory.mktemp("cost") / "step_time.json"
    command = [
        *(sys.executable, "benchmarks/step_time.py", "--models", "tiny", "--batch_size", "4", "--length", "8"),
        *("--rounds", "2", "--no-memory", "--growth", "accumulation", "--output", str(output)),
        *("--precision", "fp32", "bf16", "--variants", "none", "sam", *RIVALS),
    ]
    subprocess.run(command, cwd=ROOT, check=True, env=dict(os.environ, PYTHONPATH=str(ROOT)))
    return json.loads(output.read_text())


def test_every_variant_is_timed_and_counted(result):
    assert list(result["time"]) == ["none", "sam", *RIVALS]
    assert result["settings"]["rounds"] == 2
    assert [cell["settings"]["precision"] for cell in result["more"]] == ["bf16"]
    for cell in (result, *result["more"]):
        for row in cell["time"].values():
            spread = row["times_plain"]
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]
    # Each variant makes two passes
    assert {v: row["times_plain"] for v, row in result["flops"].items()} == {"none": 1} | dict.fromkeys(
        ["sam", *RIVALS], 2
    )


def test_no_variant_keeps_its_place_in_the_rounds(tmp_path, monkeypatch):
    turns = []

    def turn(self, variant, flops=None, at_start=None):
        turns.append(variant)
        return types.SimpleNamespace(seconds=2.0 if variant == "sam" else 1.0, flops=1.0)

    monkeypatch.setattr(cost_cell.Bench, "turn", turn)
    variants = ["none", "sam", "msam", "gsam"]
    found = cost_cell.measure(cost_cell.Cell(model="tiny", rounds=4), variants, str(tmp_path), with_flops=False)
    rounds = [turns[start : start + 4] for start in range(0, 16, 4)]
    assert all(sorted(row) == sorted(variants) for row in rounds)
    assert len({row[0] for row in rounds}) > 1
    assert found["time"]["sam"]["times_plain"]["median"] == 2


def test_the_round_that_counts_flops_takes_no_time_of_the_others(tmp_path, monkeypatch):
    now = [0.0]

    def turn(self, variant, flops=None, at_start=None):
        now[0] += 100 if flops is not None else 1
        return types.SimpleNamespace(seconds=1.0, flops=1.0)

    monkeypatch.setattr(cost_cell.Bench, "turn", turn)
    monkeypatch.setattr(cost_cell.time, "monotonic", lambda: now[0])
    found = cost_cell.measure(cost_cell.Cell(model="tiny", rounds=9, seconds=5), ["none", "sam"], str(tmp_path))
    assert found["settings"]["rounds"] == 3  # begun at 0, 2 and 4 seconds


def test_baselines_are_timed_over_several_updates(tmp_path):
    bench = cost_cell.Bench(cost_cell.Cell(model="tiny", updates=2), str(tmp_path))
    assert bench.counted_updates("sam") == 2
    assert bench.counted_updates("none") == bench.counted_updates("none, LoRA") == cost_cell.BASELINE_UPDATES
    assert bench.counted_updates("sam, every 10th update") == 10


@pytest.mark.parametrize("variant", ["sam", "sam, radius auto", "msam"])
def test_the_clock_starts_after_a_perturbed_update(tmp_path, monkeypatch, variant):
    """The first perturbed update allocates memory; with auto and msam it is the second update."""
    perturbed, before_the_clock = [], []
    add = Perturbation.add
    monkeypatch.setattr(Perturbation, "add", lambda *arguments: perturbed.append(1) or add(*arguments))
    bench = cost_cell.Bench(cost_cell.Cell(model="tiny", batch_size=2, length=4), str(tmp_path))
    bench.turn(variant, at_start=lambda: before_the_clock.append(len(perturbed)))
    assert before_the_clock[0] >= 1 and len(perturbed) > before_the_clock[0]


def test_growth_is_measured_at_equal_examples(result):
    steps = [cell["settings"]["accumulation"] for cell in result["growth"]["accumulation"]]
    assert steps == [1, 2, 4]
    assert {cell["settings"]["batch_size"] for cell in result["growth"]["accumulation"]} == {4}


def test_short_updates_are_timed_several_at_a_time(monkeypatch):
    monkeypatch.setattr(cost_growth, "measure", lambda cell, *_, **__: cell)
    axes = dict(cost_growth.growth(cost_cell.Cell(), ["parameters", "micro_batch"], ["quarter", "base"], ""))
    assert [cell.updates for cell in axes["parameters"]] == [cost_cell.BASELINE_UPDATES] * 2
    assert [(cell.batch_size, cell.updates) for cell in axes["micro_batch"]] == [(2, 5), (8, 5), (32, 1)]


def test_tables_are_made_of_it(result, tmp_path, monkeypatch):
    result["memory"] = {v: {"copies_over_plain": 0.5} for v in result["time"]}
    result["left_out"] = {"none, LoRA": "peft is not installed"}
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    before = tables.tables().keys()
    assert not any(name.startswith("cost") for name in before)
    (tmp_path / "step_time_cuda.json").write_text(json.dumps(result))
    found = tables.tables()
    assert found.keys() - before == {"cost cuda", "cost others cuda", "cost growth cuda"}
    sam = next(line for line in found["cost cuda"].splitlines() if line.startswith("| sam |"))
    assert sam.endswith("| 2.00 | 0.50 |")
    assert "tiny, bf16" in found["cost others cuda"] and "peft is not installed" in found["cost cuda"]
    assert "| accumulation | 4 |" in found["cost growth cuda"]


def test_an_interrupted_run_continues(tmp_path, monkeypatch):
    measured, output = [], tmp_path / "step_time.json"

    def measure(cell, variants, output_dir, with_flops):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(cell.precision)
        settings = {key: value for key, value in vars(cell).items() if key != "seconds"}
        spread = {"seconds_per_update": {"median": 1.0}, "times_plain": {"median": 1.0}}
        return {"settings": settings, "time": dict.fromkeys(variants, spread)}

    def run(*more):
        command = ["step_time.py", "--models", "tiny", "--variants", "none", "--precision", "fp32", "bf16"]
        command += ["--no-flops", "--no-memory", "--growth", "accumulation", "--batch_size", "1"]
        command += ["--output", str(output)]
        monkeypatch.setattr(sys, "argv", [*command, *more])
        step_time.main()

    monkeypatch.setattr(step_time, "measure", measure)
    monkeypatch.setattr(cost_growth, "measure", measure)
    with pytest.raises(KeyboardInterrupt):  # when it begins to measure growth
        run()
    before = json.loads(output.read_text())
    assert measured == ["fp32", "bf16"] and not before.get("growth")
    measured.clear()
    run()
    assert measured == ["fp32"], "only the growth is measured"
    after = json.loads(output.read_text())
    assert {key: after[key] for key in ("settings", "time", "more")} == {
        key: before[key] for key in ("settings", "time", "more")
    }
    run()
    assert measured == ["fp32"], "nothing is left to measure"
    measured.clear()
    run("--again", "--growth", "none")
    found = json.loads(output.read_text())
    assert found["growth"] == after["growth"] and found["growth_environment"] == found["environment"]
    output.write_text(json.dumps(found | {"growth": {"processes": []}, "growth_environment": {}}))
    measured.clear()
    run("--growth_only", "--again")
    assert measured == ["fp32"] and json.loads(output.read_text()) == found, "only the growth is measured again"
    for changed in (["--again"], ["--updates", "2"]):
        measured.clear()
        with pytest.raises(KeyboardInterrupt):
            run(*changed)
        assert measured == ["fp32", "bf16"]


@pytest.mark.parametrize("rival", sorted(rivals.RIVALS))
def test_rivals_train_the_same_as_sam(tmp_path, rival):
    """
    Otherwise their cost means nothing. The weights are the same, except for the 1e-12 added to the norm and float32.
    """
    if rivals.missing(rival):
        pytest.skip("not installed")
    variants = [v for v, settings in cost_cell.VARIANTS.items() if settings.get("rival") == rival]
    ours, *others = (weights_after(variant, tmp_path) for variant in ["sam", *variants])
    plain = weights_after("none", tmp_path)
    assert len(others) == (2 if rival == "davda54" else 1)
    for weights in others:
        assert (weights - ours).norm() < 1e-4 * (plain - ours).norm()


def weights_after(variant, output_dir):
    """Return the weights of the tiny model without dropout, because the rivals do not replay it."""
    bench = cost_cell.Bench(cost_cell.Cell(model="tiny", batch_size=4, length=8, updates=3), str(output_dir))
    model = bench._model(lora=False)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.config.attention_probs_dropout_prob = 0.0
    for layer in model.bert.encoder.layer:
        layer.attention.self.dropout_prob = 0.0
    bench.turn(variant)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_variants_that_cannot_run_are_named(monkeypatch):
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    variants, left_out = cost_cell.possible(["none", "pytorch_optimizer's SAM in Trainer"])
    assert variants == ["none"]
    assert left_out == {"pytorch_optimizer's SAM in Trainer": "pytorch_optimizer is not installed"}


def test_the_pieces_make_up_an_update(tmp_path, monkeypatch, capsys):
    output = tmp_path / "overhead.json"
    command = ["overhead.py", "--models", "tiny", "--batch_size", "4", "--length", "8", "--rounds", "1"]
    monkeypatch.setattr(sys, "argv", [*command, "--variants", "sam", "gsam", "--output", str(output)])
    unwrapped = [vars(owner).get(name) for owner, name, _ in overhead.PIECES]
    overhead.main()
    assert [vars(owner).get(name) for owner, name, _ in overhead.PIECES] == unwrapped
    assert "tiny, fp32, gsam" in capsys.readouterr().out
    rows = json.loads(output.read_text())["cells"][0]["rows"]
    assert "combine" in rows["gsam"]["milliseconds"] and "combine" not in rows["sam"]["milliseconds"]
    for row in rows.values():
        pieces = {label: ms for label, ms in row["milliseconds"].items() if label != "update"}
        assert min(pieces.values()) >= 0 and pieces["pass"] > 0
        assert row["added_ms"] == pytest.approx(sum(pieces.values()) - sum(pieces[x] for x in overhead.TRAINERS_OWN))
        # The optimizer and the loop around it are not pieces
        assert 0.5 * row["milliseconds"]["update"] < sum(pieces.values()) < 1.05 * row["milliseconds"]["update"]
        assert 0 < row["added_share"] < 1
    assert tables.TRAINERS_OWN == overhead.TRAINERS_OWN
    assert tables.BASELINE_UPDATES == cost_cell.BASELINE_UPDATES
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    line = next(line for line in tables.tables()["overhead"].splitlines() if "| gsam |" in line)
    most = line.split("|")[-2]
    assert "tiny, fp32, 4 × 8" in line and f"{rows['gsam']['added_share']:.2%}" in line
    assert not any(name in most for name in ("pass ", "batches", "update"))

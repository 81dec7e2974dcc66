"""The committed comparisons are whole: their records are the runs that the committed YAML asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sam_hf.compare.read import read_plan
from sam_hf.compare.records import Records
from sam_hf.compare.search import choices, search_results
from sam_hf.compare.summary import summarise

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("comparison", sorted(ROOT.glob("benchmarks/accuracy_*.yaml")), ids=lambda file: file.stem)
def test_results_are_those_of_the_configuration(comparison, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = ROOT / "benchmarks" / "results" / comparison.stem
    plan, records = read_plan(str(comparison)), Records(results / "runs")
    candidates = search_results(plan, records)
    runs = [*plan.selection_runs(), *plan.final_runs(choices(candidates))]
    assert [run.name for run in runs if records.finished(run) is None] == []

    fields = ("variant", "label_noise", "choice", "seeds", "values")
    committed = [
        {key: row[key] for key in fields} for row in json.loads((results / "compare.json").read_text())["rows"]
    ]
    rows = [row.as_json(plan.greater_is_better) for row in summarise(plan, records, candidates)]
    assert [{key: row[key] for key in fields} for row in json.loads(json.dumps(rows))] == committed

"""The committed comparisons are complete: their records are the runs that the committed YAML describes."""

from __future__ import annotations

import json
from pathlib import Path

import accuracy_pictures
import accuracy_pooled
import accuracy_tables
import pytest
import tables

from sam_hf.compare.search import choices
from sam_hf.compare.summary import comparisons

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("comparison", sorted(ROOT.glob("benchmarks/accuracy_*.yaml")), ids=lambda file: file.stem)
def test_results_are_those_of_the_configuration(comparison, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = ROOT / "benchmarks" / "results" / comparison.stem
    plan, found, candidates, records = accuracy_pictures.summarised(comparison.stem)
    runs = [*plan.selection_runs(), *plan.final_runs(choices(candidates))]
    assert [run.name for run in runs if records.finished(run) is None] == []

    committed = json.loads((results / "compare.json").read_text())["rows"]
    rows = json.loads(json.dumps([row.as_json(plan.greater_is_better) for row in found]))
    assert flat(rows) == flat(committed, approximate=True)
    assert accuracy_tables.tested_differences({"rows": committed}) == comparisons(found)


def test_the_search_is_shown_with_its_choice(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy_tables, "RESULTS", tmp_path)
    seen = [("sam", 0.0, 0.01, 0.8, True), ("sam", 0.0, 0.03, 0.75, False), ("sam", 0.4, 0.01, 0.5, True)]
    names = ("variant", "label_noise", "choice", "score", "chosen")
    search = [dict(zip(names, row, strict=True)) | {"choice": {"sam_rho": row[2]}} for row in seen]
    (tmp_path / "accuracy_text").mkdir()
    (tmp_path / "accuracy_text" / "compare.json").write_text(json.dumps({"search": search}))
    lines = accuracy_tables.search_table("text").splitlines()
    assert lines[0] == "| choice: accuracy, % | 0% wrong labels | 40% wrong labels |"
    assert lines[2] == "| sam | **0.01: 80.0**, 0.03: 75.0 | **0.01: 50.0** |"


def test_settings_are_averaged_seed_by_seed(tmp_path, monkeypatch):
    """In two settings sam is above by 4 and 0 with seed 0, and by 0 and 6 with seed 1: the means are 2 and 3."""
    monkeypatch.setattr(accuracy_tables, "RESULTS", tmp_path)
    monkeypatch.setattr(accuracy_pooled, "POOLED", {"text": {"a": (0,), "b": (0.2,)}})
    values = {"a": ([0.74, 0.70], 0), "b": ([0.60, 0.66], 0.2)}
    for name, (accuracies, noise) in values.items():
        opponent = 0.7 if name == "a" else 0.6
        by_variant = {"adamw": [opponent] * 2, "adamw, twice the epochs": [opponent] * 2, "sam": accuracies}
        by_variant |= {"in one setting": accuracies} if name == "a" else {}
        rows = [
            {
                "variant": variant,
                "label_noise": noise,
                "choice": {},
                "values": {"final": dict(zip("01", found, strict=True))},
            }
            for variant, found in by_variant.items()
        ]
        options = {variant: {"options": {"sam_method": "sam", "sam_rho": 0.02}} for variant in by_variant}
        options |= {variant: {"options": {"sam_method": "none"}} for variant in accuracy_pooled.OPPONENTS}
        result = {"rows": rows, "plan": {"variants": options}}
        (tmp_path / f"accuracy_{name}").mkdir()
        (tmp_path / f"accuracy_{name}" / "compare.json").write_text(json.dumps(result))
    lines = accuracy_pooled.pooled_table().splitlines()
    # Two seeds give Student's t one degree of freedom: 12.706 · 0.5
    assert lines[2:4] == ["| text | sam | 2 | +2.5 [−3.9, +8.9] | 0.1 | +2.0, +3.0 | +2.5 [−3.9, +8.9] |", ""]
    assert "for the 2 differences in this table" in lines[-1]


def flat(value, approximate=False, path="") -> dict:
    """Return the leaves by their paths: `pytest.approx` does not look into nested values."""
    if not isinstance(value, (dict, list)):
        return {path: pytest.approx(value, abs=1e-9) if approximate and isinstance(value, float) else value}
    items = value.items() if isinstance(value, dict) else enumerate(value)
    return {leaf: found for key, inner in items for leaf, found in flat(inner, approximate, f"{path}/{key}").items()}


def test_every_table_and_picture_has_a_place():
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    text = "".join(page.read_text(encoding="utf-8") for page in pages)
    for name in tables.tables():
        assert text.count(f"<!-- {name} -->") == text.count(f"<!-- /{name} -->") == 1, name
    for picture in ROOT.glob("docs/pictures/accuracy_*.png"):
        assert text.count(f"(pictures/{picture.name})") == 1, picture.name


def test_pictures_are_drawn_from_the_records(tmp_path, monkeypatch):
    monkeypatch.setattr(accuracy_pictures, "PICTURES", tmp_path)
    monkeypatch.chdir(tmp_path)  # the test's own folder is restored at the end
    accuracy_pictures.draw()
    committed = sorted(path.name for path in ROOT.glob("docs/pictures/accuracy_*.png"))
    assert sorted(path.name for path in tmp_path.iterdir()) == committed

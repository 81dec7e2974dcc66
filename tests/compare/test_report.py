"""The pictures, the page and the Markdown of a comparison show the numbers that they are given."""

from __future__ import annotations

import re
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from sam_hf.compare import pictures
from sam_hf.compare.plan import Plan, Selection, Variant
from sam_hf.compare.records import Records
from sam_hf.compare.report import write_report
from sam_hf.compare.search import search_results
from sam_hf.compare.statistics import Difference, Sample
from sam_hf.compare.summary import summarise
from sam_hf.compare.table import Format, markdown
from sam_hf.reports.page import Table, render


@pytest.fixture
def recorded(tmp_path):
    """A plan with invented records: the variant gains 2, 3 and 4 points, and the search chooses 0.1."""
    variants = {
        "adamw": Variant("adamw", {"sam_method": "none"}),
        "<sam> & co": Variant("<sam> & co", {"sam_method": "sam"}, ({"sam_rho": 0.01}, {"sam_rho": 0.1})),
    }
    plan = Plan(
        recipe="text",
        variants=variants,
        baseline="adamw",
        seeds=(0, 1, 2),
        label_noise=(0.0, 0.4),
        select=Selection(20, (7,)),
        metric="eval_accuracy",
        greater_is_better=True,
        twins={"adamw": (None,), "<sam> & co": (None, None)},
        compute={"adamw": (2.0,), "<sam> & co": (4.0, 4.0)},
    )
    records = Records(tmp_path / "runs")

    def record(run, *accuracies):
        evaluations = [{"epoch": i, "step": i, "eval_accuracy": a} for i, a in enumerate(accuracies)]
        content = {"evaluations": evaluations, "train": {"train_runtime": 3.0}, "memory": None, "environment": {}}
        records.add(run, content)

    for noise in plan.label_noise:
        for rho in (0.01, 0.1):
            record(plan.selection_run("<sam> & co", {"sam_rho": rho}, noise, 7), 0.5 + rho)
        for seed in plan.seeds:
            record(plan.final_run("adamw", {}, noise, seed), 0.9, 0.7)
            record(plan.final_run("<sam> & co", {"sam_rho": 0.1}, noise, seed), 0.8, 0.72 + 0.01 * seed)
    return plan, records


def test_the_page_holds_the_table_the_pictures_and_nothing_from_elsewhere(recorded, tmp_path):
    plan, records = recorded
    candidates = search_results(plan, records)
    rows = summarise(plan, records, candidates)
    html = write_report(plan, rows, candidates, records, tmp_path).read_text(encoding="utf-8")
    assert "<td>73.0 ± 1.0</td>" in html and "<td>70.0 ± 0.0</td>" in html and "<td>90.0 ± 0.0</td>" in html
    assert "+3.00 [+0.52, +5.48]" in html  # 3 ± 4.303 / √3
    assert html.count("data:image/svg+xml") == 3 and len(list((tmp_path / "pictures").glob("*.svg"))) == 3
    assert "&lt;sam&gt; &amp; co" in html and "<sam>" not in html
    assert not re.search(r'(src|href)="(?!data:)', html)
    assert "chose sam_rho=0.1 for &lt;sam&gt; &amp; co at label noise 40%. This is an end of its grid" in html
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in html


def test_the_table_says_what_the_page_says(recorded):
    plan, records = recorded
    candidates = search_results(plan, records)
    text = markdown(plan, summarise(plan, records, candidates), candidates)
    assert "| <sam> & co (sam_rho=0.1) | 3 | 73.0 ± 1.0 | 80.0 ± 0.0 | 4 | 3.0 | 1.00 |  |" in text
    # For t = 3√3 and 2 degrees of freedom, p is 1 − √(27/29) = 0.035. Two noise rates double it
    assert "| <sam> & co | adamw | only before adjustment | +3.00 [+0.52, +5.48] | 0.035 | 0.070 | 3 |" in text
    assert "| <sam> & co | 40% | sam_rho=0.1 | 60.0 | yes |" in text
    assert "chose sam_rho=0.1 for <sam> & co at label noise 40%. This is an end of its grid" in text


def test_bars_in_names_do_not_split_the_columns_of_the_markdown():
    text = render(
        "comparison.md.j2",
        plan=SimpleNamespace(metric="m", recipe="text", variants={}, baseline="a|b"),
        tables={"0%": (Table(["variant", "× a|b"], [["a|b", "1"]]), Table([], []))},
        comparisons=0,
        select=None,
    )
    assert "| variant | × a\\|b |\n|---|---|\n| a\\|b | 1 |\n" in text


def test_losses_are_not_shown_in_percent():
    assert Format("eval_loss").sample(Sample(2, 0.5, 0.25)) == "0.5000 ± 0.2500"
    assert Format("eval_f1_macro").sample(Sample(1, 0.5, None)) == "50.0"


def test_the_forest_has_each_interval_where_it_is():
    panels = {
        "a": {
            "x": {"minus b": Difference(5, 0.02, 0.01, 0.03, 0.01, 0.04)},
            "y": {"minus b": Difference(5, -0.01, -0.03, 0.01, 0.3, 0.6)},
        }
    }
    ax = pictures.draw_differences(panels, xlabel="points", factor=100)
    points = [container.lines[0] for container in ax.containers]
    np.testing.assert_allclose([p.get_xdata()[0] for p in points], [2, -1], rtol=1e-12)
    assert [p.get_markerfacecolor() != "white" for p in points] == [True, False]
    bars = [container.lines[2][0].get_segments()[0][:, 0] for container in ax.containers]
    np.testing.assert_allclose(bars, [[1, 3], [-3, 1]], rtol=1e-12)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["x", "y"]


def test_variants_stay_apart_where_colours_begin_again():
    looks = [pictures._look(i) for i in range(40)]
    assert len({(look["color"], look["marker"]) for look in looks}) == 40


def test_lines_against_noise_are_the_means_in_percent():
    samples = {"x": {0.4: Sample(3, 0.5, 0.1), 0.0: Sample(3, 0.8, 0.05)}, "y": {0.0: Sample(0, None, None)}}
    ax = pictures.draw_against_noise(samples, metric="accuracy", factor=100)
    assert ax.containers[0].lines[0].get_ydata().tolist() == pytest.approx([80, 50])
    assert len(ax.containers) == 1
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0%", "40%"]


def test_the_longer_baseline_is_named(recorded, tmp_path):
    """The picture does not say "at equal compute": variants with fewer passes are compared with it too."""
    plan, records = recorded
    twins = {"adamw": (None,), "adamw, longer": (None,), "<sam> & co": ("adamw, longer",) * 2}
    plan = replace(
        plan,
        variants={**plan.variants, "adamw, longer": Variant("adamw, longer", {"num_train_epochs": 4})},
        twins=twins,
        compute={**plan.compute, "adamw, longer": (4.0,)},
    )
    for noise in plan.label_noise:
        for seed in plan.seeds:
            evaluations = [{"epoch": 1, "step": 1, "eval_accuracy": 0.6}]
            content = {"evaluations": evaluations, "train": {"train_runtime": 3.0}, "memory": None, "environment": {}}
            records.add(plan.final_run("adamw, longer", {}, noise, seed), content)
    candidates = search_results(plan, records)
    rows = summarise(plan, records, candidates)
    write_report(plan, rows, candidates, records, tmp_path)
    picture = (tmp_path / "pictures" / "differences.svg").read_text(encoding="utf-8")
    assert "minus adamw, longer" in picture and "at equal compute" not in picture

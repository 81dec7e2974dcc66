"""The pictures, the page and the Markdown of a comparison show the numbers that they are given."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from PIL import ImageFont

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
    html = write_report(plan, rows, candidates, records, tmp_path).read_text(encoding="utf-8").replace("\xa0", " ")
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
        diverged=0,
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


def test_lines_against_noise_are_the_means_in_percent():
    samples = {"x": {0.4: Sample(3, 0.5, 0.1), 0.0: Sample(3, 0.8, 0.05)}, "y": {0.0: Sample(0, None, None)}}
    ax = pictures.draw_against_noise(samples, metric="accuracy", factor=100)
    assert ax.containers[0].lines[0].get_ydata().tolist() == pytest.approx([80, 50])
    assert len(ax.containers) == 1
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0%", "40%"]


def test_points_stand_at_their_noise_rate():
    rates = (0.0, 0.125, 0.4)
    samples = {f"variant {i}": {rate: Sample(3, 0.8 - rate / 4 + i / 100, 0.02) for rate in rates} for i in range(5)}
    ax = pictures.draw_against_noise(samples, metric="accuracy")
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0%", "12.5%", "40%"]
    for container in ax.containers:
        assert container.lines[0].get_xdata().tolist() == ax.get_xticks().tolist()
    # Bars at the same place differ in the width of their caps
    assert len({container.lines[1][0].get_markersize() for container in ax.containers}) == 5


def test_variants_of_equal_compute_stay_inside_the_picture():
    panel = {f"variant {i}": (40.0, Sample(3, 0.8, 0.01)) for i in range(30)}
    ax = pictures.draw_against_compute(
        {"label noise 0%": {"adamw": (20.0, Sample(3, 0.7, 0.01)), **panel}}, metric="accuracy", unit="epochs"
    )
    low, high = ax.get_xlim()
    places = [container.lines[0].get_xdata()[0] for container in ax.containers]
    assert len(set(places)) == 31 and low < min(places) and max(places) < high


@pytest.mark.parametrize("count", [2, 6, 14, 30])
@pytest.mark.parametrize("name", ["sam {}", "sam (sam_rho=0.05, sam_p={})", "W" * 40 + "{}"])
def test_legends_are_inside_the_picture_and_take_no_room_from_it(count, name):
    names = [name.format(i) for i in range(count)]
    sample = Sample(3, 0.8, 0.01)
    panels = {"label noise 0%": {n: {"minus adamw": Difference(3, 0.1, 0.0, 0.2, 0.1)} for n in names}}
    drawn = [
        pictures.draw_against_noise({n: {0.0: sample, 0.4: sample} for n in names}, metric="accuracy"),
        pictures.draw_against_compute({"0%": {n: (2.0, sample) for n in names}}, metric="accuracy", unit="epochs"),
        pictures.draw_differences(panels, xlabel="points"),
    ]
    for ax in drawn:
        ax.figure.draw_without_rendering()
        [legend] = ax.figure.legends
        box, whole = legend.get_window_extent(), ax.figure.bbox
        assert box.x0 >= whole.x0 - 1 and box.x1 <= whole.x1 + 1 and box.y0 >= whole.y0 and box.y1 <= whole.y1 + 1
        assert not box.overlaps(ax.get_window_extent())
        assert ax.get_window_extent().height > 50


def test_every_column_of_the_tables_is_seen_without_scrolling(recorded, tmp_path):
    """At 1,400 pixels the text is 960 wide. A table takes at least the longest word of each of its columns."""
    plan, records = recorded
    candidates = search_results(plan, records)
    html = write_report(plan, summarise(plan, records, candidates), candidates, records, tmp_path).read_text("utf-8")
    size = 0.92 * 16
    font = ImageFont.truetype(str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans-Bold.ttf")), size)
    padding = float(re.search(r"padding: \S+ 0 \S+ ([\d.]+)rem", html)[1]) * 16
    nowrap = re.search(r"\nth, td \{[^}]*white-space: nowrap", html) is not None
    tables = [t for t in re.findall(r"<table>.*?</table>", html, re.DOTALL) if "p by Holm" in t]
    assert len(tables) == 2
    for table in tables:
        rows = [re.findall(r"<t[hd].*?>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", table)]
        words = [
            [word for cell in column for word in ([cell] if nowrap else cell.split(" "))]
            for column in zip(*rows, strict=True)
        ]
        assert sum(padding + max(map(font.getlength, column)) for column in words) < 960
        assert all("\xa0" in cell for row in rows[1:] for cell in row if "[" in cell), "an interval must not be torn"


def test_a_seed_that_diverged_is_seen(recorded, tmp_path):
    """One without a finite metric has no value to average. One without a finite loss keeps its chance accuracy."""
    plan, records = recorded
    for seed, accuracy, loss in ((0, math.nan, math.nan), (1, 0.5, math.nan)):
        evaluations = [{"epoch": 1, "step": 1, "eval_accuracy": accuracy, "eval_loss": loss}]
        content = {"evaluations": evaluations, "train": {"train_runtime": 3.0}, "memory": None, "environment": {}}
        records.add(plan.final_run("adamw", {}, 0.4, seed), content)
    candidates = search_results(plan, records)
    rows = summarise(plan, records, candidates)
    row = next(row for row in rows if (row.variant, row.label_noise) == ("adamw", 0.4))
    assert row.diverged == (0, 1) and row.as_json(True)["diverged"] == (0, 1)
    assert row.samples["final"].mean == pytest.approx((0.5 + 0.7) / 2)
    assert "diverged" not in rows[0].as_json(True)
    text = markdown(plan, rows, candidates)
    assert "| adamw | 2 (2 diverged) | 60.0" in text
    assert re.search(r"\| <sam> & co \| adamw \| .* \| 2 of 3 \|", text)
    assert "2 runs diverged: the loss or the metric is not finite at the end." in text
    html = write_report(plan, rows, candidates, records, tmp_path).read_text(encoding="utf-8")
    assert "2 (2 diverged)" in html and "2 runs diverged" in html


def test_noise_rates_that_round_alike_have_tables_of_their_own(recorded):
    plan, records = recorded
    plan = replace(plan, label_noise=(0.0, 0.001, 0.004))
    for noise, accuracy in ((0.001, 0.61), (0.004, 0.62)):
        for seed in plan.seeds:
            evaluations = [{"epoch": 1, "step": 1, "eval_accuracy": accuracy}]
            content = {"evaluations": evaluations, "train": {"train_runtime": 3.0}, "memory": None, "environment": {}}
            records.add(plan.final_run("adamw", {}, noise, seed), content)
    text = markdown(plan, summarise(plan, records, []), [])
    assert re.findall("## Label noise (.*)", text) == ["0%", "0.1%", "0.4%"]
    assert "61.0" in text and "62.0" in text


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

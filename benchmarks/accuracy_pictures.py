"""Draws the pictures of the comparisons again from their committed records."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).parent.parent
PICTURES = ROOT / "docs" / "pictures"
# Comparisons with pictures, each with the comparisons that have the same settings at other noise rates
COMPARISONS: dict[str, tuple[str, ...]] = {"accuracy_text": (), "accuracy_image": ("accuracy_image_rates",)}


def summarised(comparison: str) -> tuple[Any, list, list, Any]:
    """Return the plan, its rows, the search's candidates and the records."""
    from sam_hf.compare.read import read_plan
    from sam_hf.compare.records import Records
    from sam_hf.compare.search import search_results
    from sam_hf.compare.summary import summarise

    plan = read_plan(f"benchmarks/{comparison}.yaml")
    records = Records(ROOT / "benchmarks" / "results" / comparison / "runs")
    candidates = search_results(plan, records)
    return plan, summarise(plan, records, candidates), candidates, records


def draw() -> None:
    from sam_hf.compare.report import write_report

    os.chdir(ROOT)  # paths in the configurations are relative to it
    for comparison, others in COMPARISONS.items():
        plan, rows, candidates, records = summarised(comparison)
        with tempfile.TemporaryDirectory() as folder:
            write_report(plan, rows, candidates, records, Path(folder))
            for picture in sorted(Path(folder, "pictures").glob("*.png")):
                shutil.copyfile(picture, PICTURES / f"{comparison}_{picture.name}")
        if others:
            more = [row for other in others for row in summarised(other)[1]]
            draw_all_rates(comparison, [*rows, *more], {row.variant for row in more})


def draw_all_rates(comparison: str, rows: list, variants: set[str]) -> None:
    from sam_hf import plots
    from sam_hf.compare.pictures import draw_against_noise

    samples: dict[str, dict[float, Any]] = {}
    for row in sorted(rows, key=lambda row: row.label_noise):
        if row.variant in variants:
            samples.setdefault(row.variant, {})[row.label_noise] = row.samples["final"]
    figure = draw_against_noise(samples, metric="accuracy (%), final epoch", factor=100).get_figure()
    with tempfile.TemporaryDirectory() as folder:
        png, _ = plots.save(figure, Path(folder), "against_noise")
        shutil.copyfile(png, PICTURES / f"{comparison}_against_noise.png")

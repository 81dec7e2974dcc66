"""
Writes the tables of the README and docs, and draws their pictures, from the committed result files.

    python benchmarks/tables.py           # write
    python benchmarks/tables.py --check   # exit with status 1 where pages and results differ
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import accuracy_pictures
import accuracy_pooled
import accuracy_tables
import gallery
from accuracy_tables import machine, table

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"

# The same as in benchmarks/overhead.py and cost_cell.py, whose imports take seconds
TRAINERS_OWN = ("pass", "batches (Trainer)")
BASELINE_UPDATES = 5
SIZES = {"small": "A BERT of MiniLM's size", "base": "a BERT-base", "large": "a BERT of 20 times that size"}


def load(name: str) -> dict:
    return json.loads((RESULTS / name).read_text())


def ratio(cell: dict, variant: str) -> str:
    spread = cell["time"][variant]["times_plain"]
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def described(cell: dict) -> str:
    settings = cell["settings"]
    updates = f"{settings['updates']} update{'s' if settings['updates'] > 1 else ''}"
    model, parameters = settings.get("model", "small"), settings.get("parameters", 22_713_986)
    return (
        f"{SIZES.get(model, model)} ({parameters / 1e6:.1f} M parameters), batch {settings['batch_size']}, length "
        f"{settings['length']}. In each of {settings['rounds']} rounds the variants take turns: {updates} of a method "
        f"(at least a whole interval), {max(settings['updates'], BASELINE_UPDATES)} of plain training"
    )


def cost_table(name: str) -> str:
    """Return the table of the first model and precision."""
    result = load(name)
    flops = result.get("flops")
    heads = ["method", "times plain Trainer, median (min to max)", *(["FLOPs"] if flops else [])]
    heads.append("additional copies of the trained weights at peak")
    rows = []
    for variant in result["time"]:
        counted = [f"{flops[variant]['times_plain']:.2f}"] if flops else []
        copies = f"{result['memory'][variant]['copies_over_plain']:.2f}"
        rows.append([variant, ratio(result, variant), *counted, copies])
    clock, peaks = "wall time", ""  # on a GPU the peaks are those of the timed updates
    if not result["environment"]["gpu"]:
        clock = "CPU time"
        peaks = (
            " A peak is the resident memory of a separate process, at batch 2 and length 8. Peaks differ by some MB "
            "from run to run, which is more than the size of the LoRA adapters."
        )
    note = (
        f"{described(result)}; {clock}; {machine(result['environment'], with_threads=True)}.{peaks} nbar is compared "
        "with plain training of the same LoRA adapters."
    )
    return "\n".join([*table(heads, rows), "", note, *left_out(result)])


def others_table(cells: list[dict]) -> str:
    """Return the times relative to plain training for the other models and precisions."""
    heads = ["method", *(f"{cell['settings']['model']}, {cell['settings']['precision']}" for cell in cells)]
    rows = [[variant, *(ratio(cell, variant) for cell in cells)] for variant in cells[0]["time"]]
    models = {cell["settings"]["model"]: cell for cell in cells}
    note = " ".join(f"`{model}`: {described(cell)}." for model, cell in models.items())
    return "\n".join([*table(heads, rows), "", note])


def left_out(result: dict) -> list[str]:
    return [f"Not run: {variant} ({reason})." for variant, reason in result.get("left_out", {}).items()]


def growth_table(name: str) -> str:
    """Return the milliseconds of plain updates, and the times of ways to SAM relative to them, along each axis."""
    variants = ("sam", "sam, radius auto", "davda54's SAM in Trainer")
    rows = []
    for axis, cells in load(name)["growth"].items():
        for cell in cells:
            settings = cell["settings"]
            value = {
                "parameters": f"{settings['parameters'] / 1e6:.1f} M",
                "accumulation": settings["accumulation"],
                "micro_batch": settings["batch_size"],
                "processes": settings.get("processes"),
            }[axis]
            plain = 1000 * cell["time"]["none"]["seconds_per_update"]["median"]
            ratios = (ratio(cell, variant) if variant in cell["time"] else "" for variant in variants)
            rows.append([axis.replace("_", "-"), value, f"{plain:.1f}", *ratios])
    return "\n".join(table(["what grows", "", "plain, ms", *variants], rows))


def overhead_table(name: str) -> str:
    """Return the part of an update that is neither Trainer's nor a pass, and the largest pieces of this part."""
    result = load(name)
    rows = []
    for cell in result["cells"]:
        settings = cell["settings"]
        model = f"{settings['model']}, {settings['precision']}, {settings['batch_size']} × {settings['length']}"
        for variant, row in cell["rows"].items():
            pieces = {label: ms for label, ms in row["milliseconds"].items() if label not in TRAINERS_OWN}
            update = pieces.pop("update")
            largest = sorted(pieces.items(), key=lambda piece: -piece[1])[:3]
            most = ", ".join(f"{label} {ms:.1f}" for label, ms in largest)
            share = f"{row['added_share']:.2%}"
            rows.append([model, variant, f"{update:.0f}", f"{row['added_ms']:.1f}", share, most])
    heads = ("model, batch × length", "", "update, ms", "sam_hf's, ms", "share", "largest pieces, ms")
    return "\n".join([*table(heads, rows), "", f"{machine(result['environment'], with_threads=True)}."])


def sharpness_table() -> str:
    """Return the cost of the five largest eigenvalues, and their values."""
    result = load("sharpness_cost.json")
    rows = []
    for name, case in result["cases"].items():
        values = ", ".join(f"{value:.4g}" for value in case["eigenvalues"])
        parameters = f"{case['parameters'] / 1e6:.1f} M"
        rows.append([name, parameters, case["products"], case["wall_seconds"], case["peak_gib"], values])
    environment = result["environment"] | {"threads": next(iter(result["cases"].values()))["threads"]}
    note = f"{machine(environment, with_threads=True)}; seconds and memory are those of the whole command."
    heads = ("", "parameters", "products", "seconds", "peak, GiB", "λ₁ to λ₅")
    return "\n".join([*table(heads, rows), "", note])


def tables() -> dict[str, str]:
    """Return the tables by the names of their markers; those without a result are left out."""
    found = accuracy_tables.tables() | {"accuracy pooled": accuracy_pooled.pooled_table()}
    if (RESULTS / "sharpness_cost.json").exists():
        found["sharpness cost"] = sharpness_table()
    for place, file in (("", "step_time.json"), (" cuda", "step_time_cuda.json")):
        if (RESULTS / file).exists():
            found["cost" + place] = cost_table(file)
            result = load(file)
            if result.get("more"):
                found["cost others" + place] = others_table(result["more"])
            if result.get("growth"):
                found["cost growth" + place] = growth_table(file)
    for place, file in (("", "overhead.json"), (" cuda", "overhead_cuda.json")):
        if (RESULTS / file).exists():
            found["overhead" + place] = overhead_table(file)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    options = parser.parse_args()
    stale, texts = False, tables()
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = after = page.read_text(encoding="utf-8")
        for name, text in texts.items():
            block = f"<!-- {name} -->\n{text}\n<!-- /{name} -->"
            pattern = rf"<!-- {name} -->.*?<!-- /{name} -->"
            after = re.sub(pattern, lambda _, block=block: block, after, flags=re.DOTALL)
        stale = stale or before != after
        if not options.check and before != after:
            page.write_text(after, encoding="utf-8")
    if options.check:
        sys.exit(int(stale))
    gallery.draw()
    accuracy_pictures.draw()


if __name__ == "__main__":
    main()

"""
Writes the tables of README and docs, and makes their pictures, from the committed result files.

    python benchmarks/tables.py           # writes
    python benchmarks/tables.py --check   # exit status 1 where pages and results differ
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

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine(environment: dict) -> str:
    packages = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "accelerate"))
    hardware = environment["gpu"] or f"{environment['cpu']}, {environment['threads']} thread(s)"
    return f"{hardware}, {packages}"


TRAINERS_OWN = ("pass", "batches (Trainer)")  # as benchmarks/overhead.py calls them
BASELINE_UPDATES = 5  # as benchmarks/cost_cell.py times them
SIZES = {"small": "A BERT of MiniLM's size", "base": "a BERT-base", "large": "a BERT of 20 times that size"}


def ratio(cell: dict, variant: str) -> str:
    spread = cell["time"][variant]["times_plain"]
    return f"{spread['median']:.2f} ({spread['min']:.2f} to {spread['max']:.2f})"


def described(cell: dict) -> str:
    settings = cell["settings"]
    updates = f"{settings['updates']} update{'s' if settings['updates'] > 1 else ''}"
    model, parameters = settings.get("model", "small"), settings.get("parameters", 22_713_986)
    return (
        f"{SIZES.get(model, model)} ({parameters / 1e6:.1f} M parameters), batch {settings['batch_size']}, length "
        f"{settings['length']}, {settings['rounds']} rounds in turn, {updates} of a method in each (whole intervals), "
        f"{max(settings['updates'], BASELINE_UPDATES)} of plain training"
    )


def cost_table(name: str) -> str:
    """Of the first model and precision."""
    result = json.loads((RESULTS / name).read_text())
    flops = result.get("flops")
    heads = ["method", "times plain Trainer, median (min to max)", *(["FLOPs"] if flops else [])]
    heads.append("copies of the trained weights over plain, at peak")
    rows = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for variant in result["time"]:
        counted = [f"{flops[variant]['times_plain']:.2f}"] if flops else []
        copies = f"{result['memory'][variant]['copies_over_plain']:.2f}"
        rows.append(f"| {' | '.join([variant, ratio(result, variant), *counted, copies])} |")
    clock = "wall time" if result["environment"]["gpu"] else "CPU time"
    peaks = ""
    if not result["environment"]["gpu"]:  # there the peaks are those of the timed updates
        peaks = (
            " Peaks: resident memory of a process each, at batch 2 and length 8; they differ by some MB from run to "
            "run, which is more than the adapters of LoRA."
        )
    note = (
        f"{described(result)}, {clock}; {machine(result['environment'])}.{peaks} nbar is compared with "
        "plain training of the same LoRA adapters."
    )
    return "\n".join([*rows, "", note, *left_out(result)])


def others_table(cells: list[dict]) -> str:
    """The other models and precisions: times plain alone."""
    heads = [f"{cell['settings']['model']}, {cell['settings']['precision']}" for cell in cells]
    rows = [f"| method | {' | '.join(heads)} |", "|---" * (len(cells) + 1) + "|"]
    rows += [f"| {v} | {' | '.join(ratio(cell, v) for cell in cells)} |" for v in cells[0]["time"]]
    models = {cell["settings"]["model"]: cell for cell in cells}
    return "\n".join([*rows, "", "; ".join(f"`{model}`: {described(cell)}" for model, cell in models.items()) + "."])


def left_out(result: dict) -> list[str]:
    return [f"Not run: {variant} ({reason})." for variant, reason in result.get("left_out", {}).items()]


def growth_table(name: str) -> str:
    """Milliseconds of plain updates, and what ways to SAM take more, along each axis."""
    variants = ("sam", "sam, radius auto", "davda54's SAM in Trainer")
    rows = [f"| grows | | plain, ms | {' | '.join(variants)} |", "|---" * (3 + len(variants)) + "|"]
    for axis, cells in json.loads((RESULTS / name).read_text())["growth"].items():
        for cell in cells:
            settings = cell["settings"]
            value = {
                "parameters": f"{settings['parameters'] / 1e6:.1f} M",
                "accumulation": settings["accumulation"],
                "micro_batch": settings["batch_size"],
                "processes": settings.get("processes"),
            }[axis]
            plain = 1000 * cell["time"]["none"]["seconds_per_update"]["median"]
            ratios = " | ".join(ratio(cell, v) if v in cell["time"] else "" for v in variants)
            rows.append(f"| {axis.replace('_', '-')} | {value} | {plain:.1f} | {ratios} |")
    return "\n".join(rows)


def overhead_table(name: str) -> str:
    """What of an update is neither Trainer's nor a pass, and the largest pieces of that."""
    result = json.loads((RESULTS / name).read_text())
    rows = ["| model, batch × length | | update, ms | sam_hf's, ms | share | most of it |", "|---" * 6 + "|"]
    for cell in result["cells"]:
        settings = cell["settings"]
        model = f"{settings['model']}, {settings['precision']}, {settings['batch_size']} × {settings['length']}"
        for variant, row in cell["rows"].items():
            pieces = {label: ms for label, ms in row["milliseconds"].items() if label not in TRAINERS_OWN}
            update = pieces.pop("update")
            largest = sorted(pieces.items(), key=lambda piece: -piece[1])[:3]
            most = ", ".join(f"{label} {ms:.1f}" for label, ms in largest)
            share = f"{row['added_share']:.2%}"
            rows.append(f"| {model} | {variant} | {update:.0f} | {row['added_ms']:.1f} | {share} | {most} |")
    return "\n".join([*rows, "", f"{machine(result['environment'])}."])


def sharpness_table() -> str:
    """What the five largest eigenvalues took, and what they are."""
    result = json.loads((RESULTS / "sharpness_cost.json").read_text())
    rows = ["| | parameters | products | seconds | peak, GiB | λ₁ to λ₅ |", "|---|---|---|---|---|---|"]
    for name, case in result["cases"].items():
        values = ", ".join(f"{value:.4g}" for value in case["eigenvalues"])
        cells = [f"{case['parameters'] / 1e6:.1f} M", case["products"], case["wall_seconds"], case["peak_gib"], values]
        rows.append(f"| {' | '.join(map(str, [name, *cells]))} |")
    threads = next(iter(result["cases"].values()))["threads"]
    note = (
        f"{machine(result['environment'] | {'threads': threads})}; seconds and memory are those of the whole command."
    )
    return "\n".join([*rows, "", note])


def tables() -> dict[str, str]:
    """By the names of their markers. Those without a result yet are left out."""
    found = accuracy_tables.tables() | {"accuracy pooled": accuracy_pooled.pooled_table()}
    if (RESULTS / "sharpness_cost.json").exists():
        found["sharpness cost"] = sharpness_table()
    for place, file in (("", "step_time.json"), (" cuda", "step_time_cuda.json")):
        if (RESULTS / file).exists():
            found["cost" + place] = cost_table(file)
            result = json.loads((RESULTS / file).read_text())
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
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    stale = False
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        before = after = page.read_text(encoding="utf-8")
        for name, table in tables().items():
            block = f"<!-- {name} -->\n{table}\n<!-- /{name} -->"
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

"""
Writes the README's tables from the committed result files.

    python benchmarks/tables.py           # writes
    python benchmarks/tables.py --check   # exit status 1 where README and results differ
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine(environment: dict) -> str:
    packages = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "accelerate"))
    return f"{environment['cpu']}, {environment['threads']} thread(s), {packages}"


def accuracy_table() -> str:
    rows = ["| run | label noise | method | accuracy, mean ± standard deviation | seeds |", "|---|---|---|---|---|"]
    notes = []
    for path in sorted(RESULTS.glob("demo_*.json")):
        result = json.loads(path.read_text())
        for method, row in result["summary"].items():
            label = f"sam, ρ = {result['config']['sam_rho']}" if method == "sam" else method
            rows.append(
                f"| {path.stem} | {result['label_noise']:.0%} | {label} | {100 * row['mean']:.1f} ± "
                f"{100 * row['stdev']:.1f} % | {row['seeds']} |"
            )
        notes.append(f"`{path.stem}`: {machine(result['environment'])}.")
    return "\n".join([*rows, "", *notes])


def cost_table() -> str:
    result = json.loads((RESULTS / "step_time.json").read_text())
    settings = result["settings"]
    rows = [
        "| method | times plain Trainer, median (min to max) | copies of the trained weights over plain, at peak |",
        "|---|---|---|",
    ]
    for variant, row in result["time"].items():
        ratio, copies = row["times_plain"], result["memory"][variant]["copies_over_plain"]
        rows.append(f"| {variant} | {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f}) | {copies:.2f} |")
    note = (
        f"A BERT of MiniLM's size (22.7 M parameters), batch {settings['batch_size']}, length {settings['length']}, "
        f"{settings['rounds']} rounds in turn, CPU time; {machine(result['environment'])}. nbar is compared with "
        "plain training of the same LoRA adapters."
    )
    return "\n".join([*rows, "", note])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args()
    readme = ROOT / "README.md"
    before = after = readme.read_text()
    for name, table in (("results", accuracy_table()), ("cost", cost_table())):
        block = f"<!-- {name} -->\n{table}\n<!-- /{name} -->"
        after = re.sub(rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, block=block: block, after, flags=re.DOTALL)
    if options.check:
        sys.exit(int(before != after))
    readme.write_text(after)


if __name__ == "__main__":
    main()

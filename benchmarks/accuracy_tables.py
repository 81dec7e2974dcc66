"""Tables of accuracy, flatness and tried radii, from the result files in benchmarks/results/."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
SHORT = ("adamw", "adamw, twice the epochs", "sam", "sam, auto radius", "gsam", "msam")


def load(task: str) -> dict:
    return json.loads((RESULTS / f"accuracy_{task}" / "compare.json").read_text())


def table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> list[str]:
    """Return the lines of a Markdown table."""
    head = "|" + "".join(f" {name} |" if name else " |" for name in heads)
    return [head, "|---" * len(heads) + "|", *(f"| {' | '.join(map(str, row))} |" for row in rows)]


def machine(environment: dict, with_threads: bool = False) -> str:
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "accelerate"))
    threads = f", {environment['threads']} thread(s)" if with_threads else ""
    return f"{environment['gpu'] or environment['cpu'] + threads}, {versions}"


def by_noise(result: dict) -> dict[float, list[dict]]:
    rows = defaultdict(list)
    for row in result["rows"]:
        rows[row["label_noise"]].append(row)
    return dict(sorted(rows.items()))


def percent(sample: dict) -> str:
    spread = "" if sample["deviation"] is None else f" ± {100 * sample['deviation']:.1f}"
    return f"{100 * sample['mean']:.1f}{spread}"


def points(difference: dict | None) -> str:
    """Return the difference with its interval, in bold if it is significant after Holm's adjustment."""
    if not difference or difference["low"] is None:
        return ""
    low, mean, high = (signed(difference[key]) for key in ("low", "mean", "high"))
    bold = "**" if difference["verdict"] in ("better", "worse") else ""
    return f"{bold}{mean}{bold} [{low}, {high}]"


def signed(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


def chosen(row: dict) -> str:
    return "".join(f", {name.removeprefix('sam_')} {value}" for name, value in (row["choice"] or {}).items())


def accuracy_table(task: str) -> str:
    result, lines = load(task), []
    heads = ("", "final epoch, %", "best epoch, %", "minus AdamW", "minus AdamW, twice the epochs", "epochs × passes")
    for noise, rows in by_noise(result).items():
        cells = [
            [
                row["variant"] + chosen(row),
                *(percent(row["samples"][epoch]) for epoch in ("final", "best")),
                *(points((row[other] or {}).get("final")) for other in ("against_baseline", "at_equal_compute")),
                format(row["compute"], "g"),
            ]
            for row in rows
        ]
        lines += [f"{noise:.0%} of the training labels are wrong:", "", *table(heads, cells), ""]
    bold = f"Bold: p < 0.05 after Holm's adjustment for the {tested_differences(result)} differences in these tables."
    return "\n".join([*lines, f"{provenance(task)} {bold}"])


def tested_differences(result: dict) -> int:
    """Return how many p-values of the final epoch were adjusted together."""
    differences = [
        (row[key] or {}).get("final") for row in result["rows"] for key in ("against_baseline", "at_equal_compute")
    ]
    return sum(difference is not None and difference["p"] is not None for difference in differences)


def search_table(task: str) -> str:
    """Return the accuracies on the examples cut off from training, on which the search chose; its choices are bold."""
    cells, noises = defaultdict(lambda: defaultdict(list)), []
    for candidate in load(task)["search"]:
        noise = candidate["label_noise"]
        noises += [noise] if noise not in noises else []
        value = ", ".join(format(value, "g") for value in candidate["choice"].values())
        accuracy = f"{value}: {100 * candidate['score']:.1f}"
        cells[candidate["variant"]][noise].append(f"**{accuracy}**" if candidate["chosen"] else accuracy)
    heads = ["choice: accuracy, %", *(f"{noise:.0%} wrong labels" for noise in noises)]
    rows = [[variant, *(", ".join(rates[noise]) for noise in noises)] for variant, rates in cells.items()]
    return "\n".join(table(heads, rows))


def provenance(task: str) -> str:
    """Return the seeds, the hardware and the versions of the runs."""
    records = [json.loads(path.read_text()) for path in sorted((RESULTS / f"accuracy_{task}" / "runs").glob("*.json"))]
    seeds = sorted({record["seed"] for record in records if record["purpose"] == "final"})
    machines = {machine(record["environment"]) for record in records if record["status"] == "finished"}
    return f"Seeds {', '.join(map(str, seeds))}; {'; '.join(sorted(machines))}."


def summary_table() -> str:
    """Return the table of the README: a few variants, all noise rates, final epoch."""
    noises = by_noise(load("text"))
    rows = []
    for variant in SHORT:
        found = [row for rows_of_noise in noises.values() for row in rows_of_noise if row["variant"] == variant]
        rows.append([variant, *(percent(row["samples"]["final"]) + chosen(row) for row in found)])
    lines = table(["", *(f"{noise:.0%} wrong labels" for noise in noises)], rows)
    return "\n".join([*lines, "", provenance("text")])


def rules_table(task: str) -> str:
    """Return accuracies on kept-out training examples, and not on test examples: a factor was chosen by these."""
    result = json.loads((RESULTS / f"rho_rules_{task}.json").read_text())
    runs, settings, rules = result["runs"], [], []
    accuracies = defaultdict(list)
    for run in runs:
        frozen = " frozen" if run["extra"].get("sam_batch_norm") == "frozen" else ""
        setting = f"{run['examples']}, {run['noise']:.0%}, {run['lr']:g}{frozen}"
        settings += [setting] if setting not in settings else []
        rules += [run["rule"]] if run["rule"] not in rules else []
        accuracies[run["rule"], setting].append(100 * run["kept_out"])
    rules.sort(
        key=lambda rule: (
            not rule.startswith("none"),
            rule.split()[0],
            float(rule.split()[-1]) if rule[-1].isdigit() else 0,
        )
    )
    rows = []
    for rule in rules:
        means = [statistics.mean(accuracies[rule, setting]) for setting in settings]
        cells = [f"{mean:.1f}{half_range(accuracies[rule, s])}" for mean, s in zip(means, settings, strict=True)]
        rows.append([rule, *cells, f"{statistics.mean(means):.1f}"])
    seeds = sorted({run["seed"] for run in runs})
    machines = {machine(run.get("environment", result.get("environment"))) for run in runs}
    several, spread = ("s", ", ± half of the range over seeds") if len(seeds) > 1 else ("", "")
    note = f"Seed{several} {', '.join(map(str, seeds))}{spread}; {'; '.join(sorted(machines))}."
    return "\n".join([*table(["rule", *settings, "mean"], rows), "", note])


def half_range(values: list[float]) -> str:
    return f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""


def flatness_table(task: str) -> str:
    result = json.loads((RESULTS / f"flatness_{task}.json").read_text())
    noises = {model["label_noise"] for model in result["models"].values()}
    by_variant = defaultdict(list)
    for model in sorted(result["models"].values(), key=lambda model: model["label_noise"]):
        wrong = f", {model['label_noise']:.0%} wrong labels" if len(noises) > 1 else ""
        by_variant[model["variant"] + wrong].append(model)
    rows = []
    for variant, models in sorted(by_variant.items(), key=lambda row: not row[0].startswith("adamw")):
        cells = [variant]
        for key, factor, digits in (
            ("lambda_max", 1, 0),
            ("lambda_ratio", 1, 1),
            ("trace", 1, 0),
            ("m_sharpness", 1, 3),
            ("loss", 1, 3),
            ("eval_accuracy", 100, 1),
        ):
            values = [factor * model[key] for model in models if model[key] is not None]
            spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.{digits}f}{spread}" if values else "")
        by_seed = [f"{model['lambda_max']:.0f}" for model in sorted(models, key=lambda model: model["seed"])]
        rows.append([*cells, ", ".join(by_seed)])
    heads = ("", "λmax", "λmax/λ5", "trace", "m-sharpness", "L(w)", "accuracy, %", "λmax by seed")
    settings = result["settings"]
    machines = {machine(model["environment"]) for model in result["models"].values()}
    errors = [abs(m["trace_error"] / m["trace"]) for m in result["models"].values() if m["trace_error"]]
    error = f"{statistics.median(errors):.0%}" if errors else ""
    estimate = f" The trace is an estimate; its standard error is {error} of it (median)." if errors else ""
    note = (
        f"Mean ± standard deviation over seeds, all on the same {settings['examples']} training examples. m-sharpness "
        f"has m = {settings['batch_size']}, ρ = {settings['rho']}.{estimate} {'; '.join(sorted(machines))}."
    )
    return "\n".join([*table(heads, rows), "", note])


def tables() -> dict[str, str]:
    """Return the tables by the names of their markers; those without a result are left out."""
    found = {}
    for task in ("text", "text_rates", "text_all", "image", "image_rates", "image_crops", "image_long", "image_80"):
        if (RESULTS / f"accuracy_{task}" / "compare.json").exists():
            found[f"accuracy {task}"] = accuracy_table(task)
            if load(task)["search"]:
                found[f"search {task}"] = search_table(task)
        if (RESULTS / f"flatness_{task}.json").exists():
            found[f"flatness {task}"] = flatness_table(task)
    for task in ("text", "image", "image_sizes"):
        if (RESULTS / f"rho_rules_{task}.json").exists():
            found[f"rho rules {task}"] = rules_table(task)
    return found | {"results": summary_table()}

"""Tables of accuracy, flatness and tried radii, from the result files of benchmarks/results/."""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
SHORT = ("adamw", "adamw, twice the epochs", "sam", "sam, auto radius", "gsam", "msam")


def load(task: str) -> dict:
    return json.loads((RESULTS / f"accuracy_{task}" / "compare.json").read_text())


def by_noise(result: dict) -> dict[float, list[dict]]:
    rows = defaultdict(list)
    for row in result["rows"]:
        rows[row["label_noise"]].append(row)
    return dict(sorted(rows.items()))


def percent(sample: dict) -> str:
    spread = "" if sample["deviation"] is None else f" ± {100 * sample['deviation']:.1f}"
    return f"{100 * sample['mean']:.1f}{spread}"


def points(difference: dict | None) -> str:
    """Significant after Holm's adjustment: bold."""
    if not difference or difference["low"] is None:
        return ""
    low, mean, high = (signed(difference[key]) for key in ("low", "mean", "high"))
    return f"**{mean}** [{low}, {high}]" if difference["verdict"] in ("better", "worse") else f"{mean} [{low}, {high}]"


def signed(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "−")


def chosen(row: dict) -> str:
    return "".join(f", {name.removeprefix('sam_')} {value}" for name, value in (row["choice"] or {}).items())


def accuracy_table(task: str) -> str:
    result, lines = load(task), []
    for noise, rows in by_noise(result).items():
        lines += [f"{noise:.0%} of the training labels wrong:", ""]
        lines += [
            "| | final epoch, % | best epoch, % | minus AdamW | minus AdamW, twice the epochs | epochs × passes |"
        ]
        lines += ["|---|---|---|---|---|---|"]
        for row in rows:
            cells = [row["variant"] + chosen(row), percent(row["samples"]["final"]), percent(row["samples"]["best"])]
            for against in ("against_baseline", "at_equal_compute"):
                cells.append(points((row[against] or {}).get("final")))
            lines.append(f"| {' | '.join([*cells, format(row['compute'], 'g')])} |")
        lines.append("")
    tested = f"Bold: p < 0.05 after Holm's adjustment over the {differences(result)} differences here."
    return "\n".join([*lines, f"{provenance(task)} {tested}"])


def differences(result: dict) -> int:
    """How many p-values of the final epoch were adjusted together."""
    found = [
        (row[key] or {}).get("final") for row in result["rows"] for key in ("against_baseline", "at_equal_compute")
    ]
    return sum(difference is not None and difference["p"] is not None for difference in found)


def search_table(task: str) -> str:
    """What the search saw: accuracies on the examples cut off from training, that of the choice bold."""
    cells, noises = defaultdict(lambda: defaultdict(list)), []
    for candidate in load(task)["search"]:
        noise = candidate["label_noise"]
        noises += [noise] if noise not in noises else []
        value = ", ".join(format(value, "g") for value in candidate["choice"].values())
        seen = f"{value}: {100 * candidate['score']:.1f}"
        cells[candidate["variant"]][noise].append(f"**{seen}**" if candidate["chosen"] else seen)
    lines = [f"| choice: accuracy, % | {' | '.join(f'{noise:.0%} wrong labels' for noise in noises)} |"]
    lines.append("|---" * (len(noises) + 1) + "|")
    for variant, by_noise_rate in cells.items():
        lines.append(f"| {variant} | {' | '.join(', '.join(by_noise_rate[noise]) for noise in noises)} |")
    return "\n".join(lines)


def provenance(task: str) -> str:
    """Seeds, hardware and versions of the runs."""
    records = [json.loads(path.read_text()) for path in sorted((RESULTS / f"accuracy_{task}" / "runs").glob("*.json"))]
    seeds = sorted({record["seed"] for record in records if record["purpose"] == "final"})
    machines = {machine(record["environment"]) for record in records if record["status"] == "finished"}
    return f"Seeds {', '.join(map(str, seeds))}; {'; '.join(sorted(machines))}."


def summary_table() -> str:
    """For the README: a few variants, all noise rates, final epoch."""
    rows = by_noise(load("text"))
    lines = [f"| | {' | '.join(f'{noise:.0%} wrong labels' for noise in rows)} |", "|---" * (len(rows) + 1) + "|"]
    for variant in SHORT:
        found = [row for here in rows.values() for row in here if row["variant"] == variant]
        lines.append(f"| {variant} | {' | '.join(percent(row['samples']['final']) + chosen(row) for row in found)} |")
    return "\n".join([*lines, "", provenance("text")])


def rules_table(task: str) -> str:
    """Of training examples that were kept out: a share of a step was chosen by it, so not of test examples."""
    result = json.loads((RESULTS / f"rho_rules_{task}.json").read_text())
    runs, settings, rules = result["runs"], [], []
    found = defaultdict(list)
    for run in runs:
        frozen = " frozen" if run["extra"].get("sam_batch_norm") == "frozen" else ""
        setting = f"{run['examples']}, {run['noise']:.0%}, {run['lr']:g}{frozen}"
        settings += [setting] if setting not in settings else []
        rules += [run["rule"]] if run["rule"] not in rules else []
        found[run["rule"], setting].append(100 * run["kept_out"])
    rules.sort(
        key=lambda rule: (
            not rule.startswith("none"),
            rule.split()[0],
            float(rule.split()[-1]) if rule[-1].isdigit() else 0,
        )
    )
    lines = [f"| rule | {' | '.join(settings)} | mean |", "|---" * (len(settings) + 2) + "|"]
    for rule in rules:
        means = [statistics.mean(found[rule, setting]) for setting in settings]
        cells = [f"{mean:.1f}{half_range(found[rule, s])}" for mean, s in zip(means, settings, strict=True)]
        lines.append(f"| {rule} | {' | '.join(cells)} | {statistics.mean(means):.1f} |")
    seeds = sorted({run["seed"] for run in runs})
    machines = {machine(run.get("environment", result.get("environment"))) for run in runs}
    named = (
        f"Seed {seeds[0]}"
        if len(seeds) == 1
        else f"Seeds {', '.join(map(str, seeds))}, ± half of the range over seeds"
    )
    return "\n".join([*lines, "", f"{named}; {'; '.join(sorted(machines))}."])


def half_range(values: list[float]) -> str:
    return f" ± {(max(values) - min(values)) / 2:.1f}" if len(values) > 1 else ""


def machine(environment: dict) -> str:
    versions = ", ".join(f"{name} {environment[name]}" for name in ("torch", "transformers", "accelerate"))
    return f"{environment['gpu'] or environment['cpu']}, {versions}"


def flatness_table(task: str) -> str:
    result = json.loads((RESULTS / f"flatness_{task}.json").read_text())
    noise = {model["label_noise"] for model in result["models"].values()}
    rows = defaultdict(list)
    for model in sorted(result["models"].values(), key=lambda model: model["label_noise"]):
        wrong = f", {model['label_noise']:.0%} wrong labels" if len(noise) > 1 else ""
        rows[model["variant"] + wrong].append(model)
    lines = [
        "| | λmax | λmax/λ5 | trace | m-sharpness | L(w) | accuracy, % | λmax by seed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, models in sorted(rows.items(), key=lambda row: not row[0].startswith("adamw")):
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
        lines.append(f"| {' | '.join([*cells, ', '.join(by_seed)])} |")
    settings = result["settings"]
    machines = {machine(model["environment"]) for model in result["models"].values()}
    errors = [abs(m["trace_error"] / m["trace"]) for m in result["models"].values() if m["trace_error"]]
    estimate = (
        f"; a trace is an estimate, its standard error {statistics.median(errors):.0%} of it (median)"
        if errors
        else ""
    )
    note = (
        f"Mean ± standard deviation over seeds, all on the same {settings['examples']} training examples; m-sharpness "
        f"with m = {settings['batch_size']}, ρ = {settings['rho']}{estimate}. {'; '.join(sorted(machines))}."
    )
    return "\n".join([*lines, "", note])


def tables() -> dict[str, str]:
    """By the names of their markers; those without a result are left out."""
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

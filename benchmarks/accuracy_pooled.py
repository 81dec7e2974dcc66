"""Table of differences in accuracy, averaged over the comparisons of benchmarks/results/."""

from __future__ import annotations

import statistics
from dataclasses import asdict, replace

from accuracy_tables import load, points, signed

from sam_hf.compare.statistics import holm, paired_difference, verdict

# Comparisons and noise rates that are averaged over. Above 40% seeds spread so far that one setting decides the
# average, which is shown with and without
POOLED = {
    "text": {"text": (0, 0.2, 0.4), "text_rates": (0.1, 0.3), "text_all": (0, 0.2)},
    "images": {"image": (0, 0.4), "image_rates": (0.2,), "image_crops": (0, 0.4)},
    "images, 60 and 80% too": {
        "image": (0, 0.4),
        "image_rates": (0.2, 0.6),
        "image_crops": (0, 0.4),
        "image_80": (0.8,),
    },
}
# Their radius was searched, where not in that comparison then in the one that it goes with
SEARCHED = ("sam", "asam", "msam")
OPPONENTS = ("adamw", "adamw, twice the epochs")


def pooled_table() -> str:
    """
    Differences over settings: the accuracies of a seed are averaged over the settings that have the variant, and
    these averages compared. Settings share seeds, examples and wrong labels, so that they are no replications.
    """
    rows = []
    for task, settings in POOLED.items():
        accuracies = [final_by_variant(name, noise) for name, noises in settings.items() for noise in noises]
        for variant in dict.fromkeys(name for found in accuracies for name in found):
            having = [found for found in accuracies if variant in found]
            if variant in OPPONENTS or len(having) < 2:
                continue
            means = {name: seed_means([found[name] for found in having]) for name in (variant, *OPPONENTS)}
            rows.append(
                {
                    "task": task,
                    "variant": variant,
                    "settings": len(having),
                    "differences": [paired_difference(means[variant], means[opponent]) for opponent in OPPONENTS],
                    "by_seed": [mean - means["adamw"][seed] for seed, mean in sorted(means[variant].items())],
                }
            )
    tested = [d.p for row in rows for d in row["differences"] if d.p is not None]
    adjusted = iter(holm(tested))
    lines = [
        "| | | settings | minus AdamW | p | by seed | minus AdamW, twice the epochs |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        judged = [d if d.p is None else replace(d, adjusted_p=next(adjusted)) for d in row["differences"]]
        shown = [points(asdict(d) | {"verdict": verdict(d, greater_is_better=True)}) for d in judged]
        p = "" if judged[0].p is None else f"{judged[0].p:.1g}"
        by_seed = ", ".join(signed(value) for value in row["by_seed"])
        cells = [row["task"], row["variant"], str(row["settings"]), shown[0], p, by_seed, shown[1]]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        f"Bold: p < 0.05 after Holm's adjustment over the {len(tested)} differences here; the p shown is that before."
    )
    return "\n".join([*lines, "", note])


def final_by_variant(task: str, noise: float) -> dict[str, dict[str, float]]:
    """Accuracies at the final epoch, by variant with its radius, and seed."""
    result = load(task)
    return {
        with_radius(row, result["plan"]["variants"][row["variant"]]["options"]): row["values"]["final"]
        for row in result["rows"]
        if row["label_noise"] == noise
    }


def with_radius(row: dict, options: dict) -> str:
    """The same name in two comparisons may have had two radii."""
    variant, rho = row["variant"], options.get("sam_rho")
    if options["sam_method"] == "none" or row["choice"] or variant.endswith("auto radius"):
        return variant
    if rho is None:
        return f"{variant}, auto radius"
    return variant if variant in SEARCHED else f"{variant}, rho {rho:g}"


def seed_means(settings: list[dict[str, float]]) -> dict[int, float]:
    return {int(seed): statistics.mean(values[seed] for values in settings) for seed in settings[0]}

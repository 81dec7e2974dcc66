"""Table of differences in accuracy, averaged over the comparisons of benchmarks/results/."""

from __future__ import annotations

import statistics
from dataclasses import asdict, replace

from accuracy_tables import load, points, signed, table

from sam_hf.compare.statistics import holm, paired_difference, verdict

# The comparisons and noise rates of each average. Above 40% the seeds spread so far that one setting decides the
# average; for this reason the images have one average with these rates and one without
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
# The radius of these variants was searched, in the same comparison or in the one that it belongs to
SEARCHED = ("sam", "asam", "msam")
OPPONENTS = ("adamw", "adamw, twice the epochs")


def pooled_table() -> str:
    """
    Return the differences over settings.

    The accuracies of a seed are averaged over the settings that include the variant, and these averages are compared.
    The settings share seeds, examples and wrong labels, so they are not replications.
    """
    rows = []
    for task, settings in POOLED.items():
        accuracies = [final_by_variant(name, noise) for name, noises in settings.items() for noise in noises]
        for variant in dict.fromkeys(name for by_variant in accuracies for name in by_variant):
            including = [by_variant for by_variant in accuracies if variant in by_variant]
            if variant in OPPONENTS or len(including) < 2:
                continue
            means = {name: seed_means([found[name] for found in including]) for name in (variant, *OPPONENTS)}
            rows.append(
                {
                    "task": task,
                    "variant": variant,
                    "settings": len(including),
                    "differences": [paired_difference(means[variant], means[opponent]) for opponent in OPPONENTS],
                    "by_seed": [mean - means["adamw"][seed] for seed, mean in sorted(means[variant].items())],
                }
            )
    tested = [d.p for row in rows for d in row["differences"] if d.p is not None]
    adjusted = iter(holm(tested))
    cells = []
    for row in rows:
        judged = [d if d.p is None else replace(d, adjusted_p=next(adjusted)) for d in row["differences"]]
        shown = [points(asdict(d) | {"verdict": verdict(d, greater_is_better=True)}) for d in judged]
        p = "" if judged[0].p is None else f"{judged[0].p:.1g}"
        by_seed = ", ".join(signed(value) for value in row["by_seed"])
        cells.append([row["task"], row["variant"], row["settings"], shown[0], p, by_seed, shown[1]])
    heads = ("", "", "settings", "minus AdamW", "p", "by seed", "minus AdamW, twice the epochs")
    bold = f"Bold: p < 0.05 after Holm's adjustment for the {len(tested)} differences in this table."
    note = f"{bold} The column p shows the value before the adjustment."
    return "\n".join([*table(heads, cells), "", note])


def final_by_variant(task: str, noise: float) -> dict[str, dict[str, float]]:
    """Return the accuracies at the final epoch, by variant with its radius, and by seed."""
    result = load(task)
    return {
        with_radius(row, result["plan"]["variants"][row["variant"]]["options"]): row["values"]["final"]
        for row in result["rows"]
        if row["label_noise"] == noise
    }


def with_radius(row: dict, options: dict) -> str:
    """Return the variant's name with its radius: two comparisons may use one name with two radii."""
    variant, rho = row["variant"], options.get("sam_rho")
    if options["sam_method"] == "none" or row["choice"] or variant.endswith("auto radius"):
        return variant
    if rho is None:
        return f"{variant}, auto radius"
    return variant if variant in SEARCHED else f"{variant}, rho {rho:g}"


def seed_means(settings: list[dict[str, float]]) -> dict[int, float]:
    return {int(seed): statistics.mean(values[seed] for values in settings) for seed in settings[0]}

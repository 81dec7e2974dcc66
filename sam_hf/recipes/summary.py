"""The lines that a run prints at its end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LabelNoise:
    """Noise on the training labels: the share that was asked for, and how many labels were replaced."""

    share: float
    replaced: int


def summary(history: list[dict[str, float]], args: Any, noise: LabelNoise | None) -> list[str]:
    """Return the lines of the final report."""
    evaluations = [entry for entry in history if "eval_loss" in entry]
    noise_text = "" if noise is None else f", label noise {noise.share:g} ({noise.replaced} labels replaced)"
    lines = ["", f"method {args.sam_method}{noise_text}"]
    for key, name in (
        ("eval_accuracy", "accuracy"),
        ("eval_f1_micro", "micro F1"),
        ("eval_f1", "F1 of entities"),
        ("eval_chrf", "chrF"),
        ("eval_rougeL", "ROUGE-L"),
        ("eval_mean_token_accuracy", "accuracy of the next token"),
        ("eval_mse", "mean squared error"),
        ("eval_loss", "eval loss"),
    ):
        values = [entry[key] for entry in evaluations if key in entry]
        if values:
            before = f"{values[0]:.4f} before, " if args.eval_on_start and len(values) > 1 else ""
            lines.append(f"{name}: {before}{values[-1]:.4f} after")
    for key, name in (
        ("loss", "L(w), last log"),
        ("sam_perturbed_loss", "L(w+ε), last log"),
        ("sam_sharpness", "sharpness L(w+ε) - L(w), last log"),
        ("sam_rho", "ρ"),
        ("eval_sharpness_lambda_max", "λmax of the Hessian, last evaluation"),
        ("eval_sharpness_m", "m-sharpness, last evaluation"),
        ("train_runtime", "training seconds"),
    ):
        values = [entry[key] for entry in history if key in entry]
        if values:
            lines.append(f"{name}: {values[-1]:.4g}")
    return lines

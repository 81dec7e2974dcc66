"""Preparation of what `draw.py` draws: checked arrays, scales that all models of a picture share, texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Key in Trainer's log_history -> label of its axis
CURVES = {
    "loss": "loss",
    "sam_sharpness": "L(w+ε) − L(w)\n(units of loss)",
    "sam_grad_cosine": "cos(g, s)",
    "sam_rho": "radius ρ",
    "eval_sharpness_lambda_max": "λmax (loss\nper weight²)",
    "eval_sharpness_m": "m-sharpness\n(units of loss)",
}


def array(values: Any) -> np.ndarray:
    """Return a float64 array from numbers (None becomes NaN), a NumPy array or a tensor on any device."""
    if hasattr(values, "detach"):
        values = values.detach().double().cpu().numpy()  # NumPy has no bfloat16
    return np.array(values, dtype=np.float64)


def has_finite(values: Any) -> bool:
    """Return whether there is anything to draw."""
    return bool(np.isfinite(array(values)).any())


def not_empty(models: Mapping[str, Any]) -> Mapping[str, Any]:
    if not models:
        raise ValueError("There is nothing to draw: no model was given.")
    return models


def curve(name: str, values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return x and y of one model, after a check of their shapes."""
    x, y = array(values[0]), array(values[1])
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"{name}: x has shape {x.shape} and y has shape {y.shape}. Both must be (n,) with n > 0.")
    return x, y


def grid(name: str, x: Any, y: Any, values: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return x, y and the values over them, of shape `(len(x), len(y))`, after a check of their shapes."""
    x, y, values = array(x), array(y), array(values)
    if values.shape != (len(x), len(y)) or min(values.shape) < 2:
        raise ValueError(
            f"{name}: the losses have shape {values.shape}. It must be that of the points, ({len(x)}, {len(y)}), with "
            "at least 2 of each."
        )
    if not has_finite(values):
        raise ValueError(f"{name}: no loss of the surface is finite.")
    return x, y, values


def shared_levels(
    surfaces: Sequence[np.ndarray], levels: Sequence[float] | int, round_numbers: Callable[..., Any]
) -> tuple[np.ndarray, str]:
    """
    Return levels that cover every finite value of all surfaces, and the scale of their colours, "linear" or "log".

    Args:
        levels (`Sequence[float]` or `int`): the levels themselves, or their approximate number.
        round_numbers (`Callable`): returns round numbers that cover a range, given its two ends and a count.
    """
    values = np.concatenate([surface[np.isfinite(surface)] for surface in surfaces])
    lowest, highest = float(values.min()), float(values.max())
    scale = "log" if lowest > 0 and highest > 10 * lowest else "linear"
    if not isinstance(levels, int):
        return array(levels), scale
    if scale == "log":
        steps = np.geomspace(lowest, highest, levels + 1)
        steps[[0, -1]] *= 1 - 1e-9, 1 + 1e-9  # otherwise rounding could leave a value outside
        return steps, scale
    if highest - lowest <= 1e-9 * max(abs(lowest), abs(highest)):
        room = 0.01 * abs(lowest) or 1e-6  # the surface is constant: it has one colour, but the scale needs a range
        lowest, highest = lowest - room, highest + room
    return np.asarray(round_numbers(lowest, highest, levels)), scale


def density_limits(densities: Sequence[np.ndarray]) -> tuple[float, float]:
    """
    Return the ends of a logarithmic axis that shows every peak. Between the peaks Gaussian tails fall to almost 0,
    which would take hundreds of decades.
    """
    top = max(float(density.max()) for density in densities)
    if not top > 0:
        raise ValueError("The densities are nowhere above 0.")
    peaks = [top]
    for density in densities:
        padded = np.concatenate([[0.0], density, [0.0]])
        is_peak = (density >= padded[:-2]) & (density >= padded[2:]) & (density > 1e-12 * top)
        peaks += density[is_peak].tolist()
    return min(peaks) / 30, top * 3


def history(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the steps and values of the entries of a `log_history` that have `key`."""
    rows = [(entry["step"], entry[key]) for entry in entries if key in entry and "step" in entry]
    return array([step for step, _ in rows]), array([value for _, value in rows])


def logged(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return the keys of `CURVES` that any run logged, with ρ only if it changes in one."""
    values_of = {key: [history(entries, key)[1] for entries in histories.values()] for key in CURVES}
    keys = [key for key in CURVES if any(len(values) for values in values_of[key])]
    if "sam_rho" in keys and not any(map(_changes, values_of["sam_rho"])):
        keys.remove("sam_rho")
    return keys


def _changes(values: np.ndarray) -> bool:
    """Return whether values differ by more than the rounding error of a mean of equal numbers."""
    return len(values) > 0 and bool(np.ptp(values) > 1e-5 * values.max())


def number(value: float, digits: int = 3) -> str:
    """Format a number with `digits` digits, a true minus sign, and a power of ten only if that is shorter."""
    if not np.isfinite(value):
        return "not finite"
    text = f"{value:.{digits}g}"
    if "e" in text and 1e3 <= abs(value) < 1e5:
        text = f"{value:.0f}"
    mantissa, _, exponent = text.partition("e")
    return (f"{mantissa}·10{_raised(int(exponent))}" if exponent else mantissa).replace("-", "−")


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def legend_names(names: Iterable[str], length: int = 28) -> dict[str, str]:
    """
    Return each name as the legend shows it: on one line, and shortened in the middle if it is long. If two names would
    become the same, the folders that all share are removed first. Dollar signs are escaped, since matplotlib would
    read them as mathematics.
    """
    plain = {name: _one_line(name) for name in names}
    short = {name: _shortened(text, length) for name, text in plain.items()}
    if len(set(short.values())) < len(short):
        different_parts = _without_shared_folders(list(plain.values()))
        short = {name: _shortened(text, length) for name, text in zip(plain, different_parts, strict=True)}
    return {name: text.replace("$", r"\$") for name, text in short.items()}


def _without_shared_folders(paths: Sequence[str]) -> list[str]:
    parts = [path.split("/") for path in paths]
    for end in (0, -1):
        while all(len(part) > 1 for part in parts) and len({part[end] for part in parts}) == 1:
            for part in parts:
                del part[end]
    return ["/".join(part) for part in parts]


def _one_line(name: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in str(name)).split()) or "(no name)"


def _shortened(name: str, length: int) -> str:
    return name if len(name) <= length else f"{name[: length // 2 - 1]}…{name[-(length - length // 2) :]}"

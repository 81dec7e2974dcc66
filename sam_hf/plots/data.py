"""Arrays made ready for [`plotting`](plotting.py): checked, with scales that all of a picture's models share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# Key of Trainer's log_history -> what its axis says
CURVES = {
    "loss": "loss",
    "sam_sharpness": "L(w+ε) − L(w)\n(units of loss)",
    "sam_grad_cosine": "cos(g, s)",
    "sam_rho": "radius ρ",
    "eval_sharpness_lambda_max": "λmax (loss\nper weight²)",
    "eval_sharpness_m": "m-sharpness\n(units of loss)",
}


def array(values: Any) -> np.ndarray:
    """Float64, from numbers (None is NaN), numpy or torch on any device."""
    if hasattr(values, "detach"):
        values = values.detach().double().cpu().numpy()  # bfloat16 has no numpy type
    return np.array(values, dtype=np.float64)


def has_finite(values: Any) -> bool:
    """Whether there is anything to draw."""
    return bool(np.isfinite(array(values)).any())


def some(models: Mapping[str, Any]) -> Mapping[str, Any]:
    if not models:
        raise ValueError("Nothing to draw: no model was given")
    return models


def curve(name: str, values: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """x and y of one model, of one shape."""
    x, y = array(values[0]), array(values[1])
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"{name}: x of shape {x.shape} and y of shape {y.shape}, not both (n,) with n > 0")
    return x, y


def grid(name: str, x: Any, y: Any, values: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y and the values over them, of shape `(len(x), len(y))`."""
    x, y, values = array(x), array(y), array(values)
    if values.shape != (len(x), len(y)) or min(values.shape) < 2:
        raise ValueError(
            f"{name}: losses of shape {values.shape} over {len(x)} × {len(y)} points, not ({len(x)}, {len(y)}) with "
            "at least 2 of each"
        )
    if not has_finite(values):
        raise ValueError(f"{name}: no loss of the surface is finite")
    return x, y, values


def shared_levels(
    surfaces: Sequence[np.ndarray], levels: Sequence[float] | int, round_numbers: Callable[..., Any]
) -> tuple[np.ndarray, str]:
    """
    Levels that cover every finite value of all surfaces, and the scale, "linear" or "log", of their colours.

    Args:
        levels (`Sequence[float]` or `int`): the levels themselves, or about how many.
        round_numbers (`Callable`): of the lowest value, the highest one and a count: numbers that cover all of it.
    """
    values = np.concatenate([surface[np.isfinite(surface)] for surface in surfaces])
    lowest, highest = float(values.min()), float(values.max())
    scale = "log" if lowest > 0 and highest > 10 * lowest else "linear"
    if not isinstance(levels, int):
        return array(levels), scale
    if scale == "log":
        steps = np.geomspace(lowest, highest, levels + 1)
        steps[[0, -1]] *= 1 - 1e-9, 1 + 1e-9  # rounding must leave no value outside
        return steps, scale
    if highest - lowest <= 1e-9 * max(abs(lowest), abs(highest)):
        room = 0.01 * abs(lowest) or 1e-6  # a plane: one colour, and a scale to read it by
        lowest, highest = lowest - room, highest + room
    return np.asarray(round_numbers(lowest, highest, levels)), scale


def density_limits(densities: Sequence[np.ndarray]) -> tuple[float, float]:
    """
    Ends of a logarithmic axis that show every peak: between them, Gaussian tails fall to nothing and would take
    hundreds of decades.
    """
    top = max(float(density.max()) for density in densities)
    if not top > 0:
        raise ValueError("The densities are nowhere above 0")
    peaks = [top]
    for density in densities:
        padded = np.concatenate([[0.0], density, [0.0]])
        is_peak = (density >= padded[:-2]) & (density >= padded[2:]) & (density > 1e-12 * top)
        peaks += density[is_peak].tolist()
    return min(peaks) / 30, top * 3


def history(entries: Sequence[Mapping[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of the entries of a `log_history` that have `key`."""
    rows = [(entry["step"], entry[key]) for entry in entries if key in entry and "step" in entry]
    return array([step for step, _ in rows]), array([value for _, value in rows])


def logged(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """Those of `CURVES` that some run logged; ρ only if it changes in one."""
    found = {key: [history(entries, key)[1] for entries in histories.values()] for key in CURVES}
    keys = [key for key in CURVES if any(len(values) for values in found[key])]
    if "sam_rho" in keys and not any(map(_changes, found["sam_rho"])):
        keys.remove("sam_rho")
    return keys


def _changes(values: np.ndarray) -> bool:
    """More than by the rounding of a mean of equal numbers."""
    return len(values) > 0 and bool(np.ptp(values) > 1e-5 * values.max())


def number(value: float, digits: int = 3) -> str:
    """A number for people: `digits` of it, a real minus sign, and a power of ten only where it saves room."""
    if not np.isfinite(value):
        return "not finite"
    text = f"{value:.{digits}g}"
    if "e" in text and 1e3 <= abs(value) < 1e5:
        text = f"{value:.0f}"
    mantissa, _, exponent = text.partition("e")
    return (f"{mantissa}·10{_raised(int(exponent))}" if exponent else mantissa).replace("-", "−")


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def shown(names: Iterable[str], length: int = 28) -> dict[str, str]:
    """
    Names as a legend shows them: on one line, long ones shortened in the middle. Where that would make two look the
    same, folders that all of them share are left out first. Dollar signs are escaped, which matplotlib would read as
    mathematics.
    """
    plain = {name: _one_line(name) for name in names}
    short = {name: _shortened(text, length) for name, text in plain.items()}
    if len(set(short.values())) < len(short):
        telling = _without_shared_folders(list(plain.values()))
        short = {name: _shortened(text, length) for name, text in zip(plain, telling, strict=True)}
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

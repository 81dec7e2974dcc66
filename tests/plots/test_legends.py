"""Models are told apart, and legends are inside the picture."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.figure import Figure

from sam_hf import plots
from sam_hf.plots.style import look

X = np.linspace(-1, 1, 5)
GRID = np.linspace(-1, 30, 100)


def rows(scale: float) -> list[dict]:
    return [{"m": m, "mean": scale / m, "max": 3 * scale / m, "error": scale / m / 10} for m in (2, 8, 32)]


def pictures(names: list[str]) -> list:
    density = np.exp(-(GRID**2))
    history = [{"step": step, "loss": 1 / step, "sam_sharpness": 0.1} for step in (1, 2)]
    evaluated = [*history, {"step": 2, "eval_loss": 0.7}]
    return [
        plots.draw_m_sharpness({name: rows(1 + i) for i, name in enumerate(names)}, rho=0.05),
        plots.draw_spectral_density(dict.fromkeys(names, (GRID, density)), lambda_max=dict.fromkeys(names, 12.34)),
        plots.draw_loss_slices({name: (X, X**2 + i) for i, name in enumerate(names)}),
        plots.draw_training_curves(dict.fromkeys(names, evaluated))[0],
    ]


@pytest.mark.parametrize(
    "names",
    [
        ["sam", "adamw"],
        ["outputs/sam_rho_0.05", "outputs/adamw"],
        ["sam, ρ = 0.05", "sam, ρ = 0.10", "adamw"],
        ["W" * 30, "M" * 30],
        [f"sam ρ = {i / 100}" for i in range(1, 9)],
    ],
    ids=["short", "middle", "three", "wide", "many"],
)
def test_a_legend_is_inside_the_picture(names):
    for ax in pictures(names):
        ax.figure.draw_without_rendering()
        box, whole = ax.get_legend().get_window_extent(), ax.figure.bbox
        assert box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y0 >= whole.y0 and box.y1 <= whole.y1
        assert ax.get_window_extent().height > 90, "the legend took the room of the curves"


def test_two_columns_where_they_fit():
    short = plots.draw_loss_slices({name: (X, X**2) for name in ("a", "b", "c")})
    assert short.get_legend()._ncols == 2


def test_the_figure_of_the_caller_keeps_its_size():
    figure = Figure(figsize=(4, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for ax in (left, right):
        plots.draw_m_sharpness({name: rows(1.0) for name in ("sam", "adamw")}, ax=ax)
    assert figure.get_size_inches().tolist() == [4, 3]
    part = figure.subfigures(1, 1).add_subplot()
    assert plots.draw_loss_slices({"sam": (X, X**2)}, ax=part) is part


def test_thirty_models_differ_in_colour_and_marker_and_in_colour_and_line():
    looks = [look(i) for i in range(60)]
    for pair in (("color", "marker"), ("color", "linestyle")):
        assert len({tuple(each[key] for key in pair) for each in looks[:30]}) == 30
    assert len({tuple(map(str, each.values())) for each in looks}) == 60
    assert len({each["color"] for each in looks[:15]}) == 15
    # The first are those of Okabe and Ito
    assert [each["color"] for each in looks[:3]] == ["#0072B2", "#D55E00", "#009E73"]

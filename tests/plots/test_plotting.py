"""The pictures show the numbers that were given, on scales that the models share."""

from __future__ import annotations

import pydoc
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

from sam_hf import plots
from sam_hf.plots import style as plot_style

GRID = np.linspace(-1, 30, 400)


def density_of(*peaks: tuple[float, float], sigma: float = 0.3) -> np.ndarray:
    """Return a mixture of normal distributions, each given as (place, weight)."""
    width = sigma * np.sqrt(2 * np.pi)
    return sum(weight * np.exp(-(((GRID - place) / sigma) ** 2) / 2) / width for place, weight in peaks)


def line_of(ax, label: str) -> Line2D:
    return next(line for line in ax.get_lines() if line.get_label() == label)


def legend_of(ax) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def rows(scale: float) -> list[dict]:
    return [{"m": m, "mean": scale / m, "max": 3 * scale / m, "error": scale / m / 10} for m in (8, 2, 32)]


def surface(x, y, height=1.0, bottom=0.5):
    return bottom + height * (x[:, None] ** 2 + 2 * (y[None, :] - 0.5) ** 2)


def test_spectral_density_draws_the_densities_and_marks_lambda_max():
    sharp, flat = density_of((0, 1), (25, 1e-7)), density_of((0, 1), (4, 1e-5))
    ax = plots.draw_spectral_density(
        {"adamw": (GRID, sharp), "sam": (torch.from_numpy(GRID), torch.from_numpy(flat))},
        lambda_max={"adamw": 25.0, "sam": 4.0},
        sigma=0.3,
    )
    np.testing.assert_array_equal(line_of(ax, "adamw: λmax = 25").get_xydata(), np.stack([GRID, sharp], 1))
    np.testing.assert_array_equal(line_of(ax, "sam: λmax = 4").get_xydata(), np.stack([GRID, flat], 1))
    assert [line.get_xdata()[0] for line in ax.get_lines() if line.get_marker() == "v"] == [25, 4]
    assert (ax.get_yscale(), ax.get_xscale()) == ("log", "symlog")
    assert ax.xaxis.get_transform().linthresh == 0.3
    low, high = ax.get_ylim()
    assert low < density_of((25, 1e-7)).max() and high > sharp.max(), "a peak lies outside the axis"
    assert low > 1e-12, "the tails of the smoothing take up the axis"
    assert "loss / weight²" in ax.get_xlabel() and "1/λ" in ax.get_ylabel()


def test_ticks_of_eigenvalues_leave_room_for_their_labels():
    values = np.linspace(-1e4, 1e4, 500)
    for sigma in (1e-3, 1.0, 200.0):
        ax = plots.draw_spectral_density({"m": (values, np.full(500, 1e-3))}, sigma=sigma)
        ax.figure.draw_without_rendering()
        boxes = [label.get_window_extent() for label in ax.get_xticklabels() if label.get_text()]
        boxes.sort(key=lambda box: box.x0)
        assert len(boxes) >= 3
        assert all(left.x1 < right.x0 for left, right in pairwise(boxes)), sigma


def test_slices_share_one_axis_and_differ_without_colour():
    x = np.linspace(-1, 1, 5)
    ax = plots.draw_loss_slices({"sam": (x, x**2 + 1), "adamw": (x, 4 * x**2 + 1)}, loss="cross-entropy (nats)")
    np.testing.assert_array_equal(line_of(ax, "sam").get_ydata(), x**2 + 1)
    np.testing.assert_array_equal(line_of(ax, "adamw").get_ydata(), 4 * x**2 + 1)
    first, second = line_of(ax, "sam"), line_of(ax, "adamw")
    for property in ("get_color", "get_linestyle", "get_marker"):
        assert getattr(first, property)() != getattr(second, property)()
    assert ax.get_ylabel() == "cross-entropy (nats)" and ax.get_yscale() == "linear"


def test_a_wide_range_of_losses_is_drawn_on_a_logarithmic_axis():
    assert plots.draw_loss_slices({"sam": ([0, 1], [0.01, 90.0])}).get_yscale() == "log"
    assert plots.draw_loss_slices({"sam": ([0, 1], [-0.01, 90.0])}).get_yscale() == "linear"


def test_between_names_the_ends_and_joins_their_losses():
    ax = plots.draw_loss_between([0, 0.5, 1], [1.0, 3.0, 2.0], ("sam", "adamw"))
    np.testing.assert_array_equal(ax.get_lines()[0].get_xydata(), [[0, 1], [0.5, 3], [1, 2]])
    assert [1, 2] in [list(line.get_ydata()) for line in ax.get_lines() if line.get_linestyle() == ":"]
    assert {text.get_text(): text.xy[0] for text in ax.texts} == {"sam": 0, "adamw": 1}


def test_m_sharpness_draws_means_errors_and_the_worst_in_the_order_of_m():
    ax = plots.draw_m_sharpness({"sam": rows(1.0), "adamw": rows(2.0)}, p="inf", rho=0.05)
    bars = {container.get_label(): container for container in ax.containers}
    mean, _, (error,) = bars["adamw: mean ± s.e."].lines
    np.testing.assert_allclose(mean.get_xydata(), [[2, 1], [8, 0.25], [32, 0.0625]])
    np.testing.assert_allclose(error.get_segments()[0][:, 1], [0.9, 1.1])
    np.testing.assert_allclose(line_of(ax, "sam: worst group").get_ydata(), [1.5, 0.375, 3 / 32])
    assert (ax.get_xscale(), ax.xaxis.get_transform().base) == ("log", 2)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["2", "8", "32"]
    assert "_∞$ ≤ 0.05" in ax.get_ylabel() and "units of the loss" in ax.get_ylabel()
    assert "_2$ ≤ ρ" in plots.draw_m_sharpness({"sam": rows(1.0)}).get_ylabel()


def test_an_unknown_error_or_worst_group_is_not_drawn():
    ax = plots.draw_m_sharpness({"sam": [{"m": 4, "mean": 0.1, "error": float("inf")}, {"m": 8, "mean": 0.05}]})
    assert legend_of(ax) == ["sam: mean ± s.e."]
    segments = ax.containers[0].lines[2][0].get_segments()
    assert not any(np.isfinite(segment).all() for segment in segments if len(segment))


def test_surfaces_share_levels_colours_and_one_bar():
    x, y = np.linspace(-1, 1, 5), np.linspace(-1, 1, 9)
    flat, sharp = surface(x, y), surface(x, y, 30.0, 0.4)
    left, right = plots.draw_loss_surfaces({"sam": (x, y, flat), "adamw": (x, y, sharp)})
    of_left, of_right = left.collections[0], right.collections[0]
    np.testing.assert_array_equal(of_left.levels, of_right.levels)
    assert of_left.norm.vmin == of_right.norm.vmin and of_left.norm.vmax == of_right.norm.vmax
    np.testing.assert_array_equal(of_left.to_rgba([1.0, 5.0]), of_right.to_rgba([1.0, 5.0]))
    assert of_left.levels[0] <= 0.4 and of_left.levels[-1] >= sharp.max(), "a loss outside the scale has no colour"
    assert type(of_left.norm).__name__ == "LogNorm"
    assert len(left.figure.axes) == 3 and left.figure.axes[2].get_ylabel() == "loss"
    assert left.get_xlim() == right.get_xlim() and left.get_ylim() == right.get_ylim()
    # the first axis of the losses runs along x
    assert line_of(left, "lowest point of the grid").get_xydata().tolist() == [[0, 0.5]]
    assert line_of(left, "the model itself").get_xydata().tolist() == [[0, 0]]
    assert left.get_title() == "sam\nlowest 0.5" and "filter norms" in left.get_xlabel() + left.get_ylabel()


def test_contours_lie_where_the_loss_has_their_level():
    x = np.linspace(-1, 1, 41)
    (ax,) = plots.draw_loss_surfaces({"m": (x, x, 2 + x[:, None] + x[None, :] / 4)}, levels=[1.0, 1.5, 2.5, 3.0])
    lines = ax.collections[1]
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        assert len(path.vertices)
        along_x, along_y = path.vertices.T
        np.testing.assert_allclose(2 + along_x + along_y / 4, level, atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 0.7])
def test_a_plane_and_losses_that_are_not_finite_are_drawn(constant):
    x = np.linspace(-1, 1, 4)
    (ax,) = plots.draw_loss_surfaces({"m": (x, x, np.full((4, 4), constant))})
    assert ax.collections[0].levels[0] <= constant <= ax.collections[0].levels[-1]
    values = surface(x, x)
    values[0, 0], values[3, 3] = np.nan, np.inf
    (ax,) = plots.draw_loss_surfaces({"m": (x, x, values)})
    assert ax.collections[0].levels[-1] < 10


HISTORY = [
    {"step": 2, "loss": 0.7, "sam_sharpness": 0.01, "sam_grad_cosine": 0.99, "sam_rho": 0.05, "epoch": 1},
    {"step": 2, "eval_loss": 0.65, "epoch": 1},
    {"step": 4, "loss": 0.5, "sam_sharpness": 0.03, "sam_grad_cosine": 0.97, "sam_rho": 0.05000001, "epoch": 2},
    {"step": 4, "eval_loss": 0.6, "epoch": 2},
    {"step": 4, "train_loss": 0.6, "train_runtime": 3.0},
]


def test_training_curves_come_from_log_history():
    plain = [{"step": 2, "loss": 0.8}, {"step": 4, "loss": 0.4}]
    axes = plots.draw_training_curves({"sam": HISTORY, "adamw": plain})
    assert len(axes) == 3, "a radius that never changes needs no picture"
    loss, sharpness, cosine = axes
    np.testing.assert_array_equal(line_of(loss, "sam").get_xydata(), [[2, 0.7], [4, 0.5]])
    np.testing.assert_array_equal(line_of(loss, "sam: evaluation").get_xydata(), [[2, 0.65], [4, 0.6]])
    np.testing.assert_array_equal(line_of(loss, "adamw").get_xydata(), [[2, 0.8], [4, 0.4]])
    np.testing.assert_array_equal(line_of(sharpness, "sam").get_ydata(), [0.01, 0.03])
    np.testing.assert_array_equal(line_of(cosine, "sam").get_ydata(), [0.99, 0.97])
    assert legend_of(loss) == ["sam", "sam: evaluation", "adamw"]
    assert cosine.get_xlabel() == "update" and loss.get_shared_x_axes().joined(loss, cosine)


def test_a_radius_that_changes_is_drawn():
    history = [{"step": step, "loss": 1.0, "sam_rho": 0.1 / step} for step in (1, 2)]
    axes = plots.draw_training_curves({"sam": history})
    assert [ax.get_ylabel() for ax in axes] == ["loss", "radius ρ"]
    np.testing.assert_allclose(line_of(axes[1], "sam").get_ydata(), [0.1, 0.05])


def test_sharpness_at_evaluations_is_drawn():
    measured = [{"step": s, "eval_sharpness_lambda_max": 9.0 * s, "eval_sharpness_m": 0.1 * s} for s in (2, 4)]
    axes = plots.draw_training_curves({"sam": HISTORY + measured})
    lambda_max, rise = axes[3:]
    np.testing.assert_array_equal(line_of(lambda_max, "sam").get_xydata(), [[2, 18.0], [4, 36.0]])
    np.testing.assert_array_equal(line_of(rise, "sam").get_ydata(), [0.2, 0.4])
    assert "λmax" in lambda_max.get_ylabel() and "m-sharpness" in rise.get_ylabel()
    # A single evaluation would be invisible as a line without markers
    assert line_of(lambda_max, "sam").get_marker() not in ("", "None")


def test_axes_that_are_given_are_drawn_on_and_returned():
    figure = Figure()
    axes = figure.subplots(1, 3)
    x = np.linspace(-1, 1, 5)
    assert plots.draw_loss_slices({"sam": (x, x**2)}, ax=axes[0]) is axes[0]
    assert plots.draw_m_sharpness({"sam": rows(1.0)}, ax=axes[1]) is axes[1]
    assert plots.draw_loss_surfaces({"sam": (x, x, surface(x, x))}, axes=[axes[2]]) == [axes[2]]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.draw_loss_slices({}), "no model"),
        (lambda: plots.draw_loss_slices({"sam": ([0, 1], [1.0])}), r"sam: x has shape \(2,\) and y has shape \(1,\)"),
        (lambda: plots.draw_spectral_density({"sam": ([0, 1], [0.0, 0.0])}), "nowhere above 0"),
        (lambda: plots.draw_loss_surfaces({"sam": ([0, 1], [0, 1, 2], np.ones((3, 2)))}), r"sam: .*\(3, 2\)"),
        (lambda: plots.draw_loss_surfaces({"s": ([0, 1], [0, 1], np.full((2, 2), np.nan))}), "s: no loss"),
        (lambda: plots.draw_training_curves({"sam": [{"step": 1}]}), "some of loss, sam_sharpness"),
        (lambda: plots.draw_training_curves({"sam": HISTORY}, keys=["accuracy"]), "accuracy.*some of loss"),
        (lambda: plots.draw_training_curves({"sam": HISTORY}, axes=[]), "0 axes were given for 3 curves"),
    ],
    ids=["empty", "shapes", "density", "grid", "nan", "nothing-logged", "key", "axes"],
)
def test_what_cannot_be_drawn_is_refused(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


@pytest.mark.parametrize("name", ["_hidden", "a$b$c", r"$\frac{", "x" * 300, "two\nlines", "<b>&", ""])
def test_any_name_is_drawn_as_text(name, tmp_path):
    ax = plots.draw_loss_slices({name: ([0, 1], [1.0, 2.0]), "other": ([0, 1], [1.0, 2.0])})
    assert len(legend_of(ax)) == 2, "the legend lacks a model"
    _, svg = plots.save(ax.figure, tmp_path, "slices")
    text = svg.read_text(encoding="utf-8")
    if 0 < len(name) < 28:
        escaped = " ".join(name.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert f">{escaped}</text>" in text, "read as mathematics, or not escaped"


def test_long_names_that_differ_in_the_middle_stay_apart():
    names = [f"outputs/rotten-tomatoes/{run}_seed_0/checkpoint-500" for run in ("sam_rho_0.05", "adamw")]
    ax = plots.draw_loss_slices({name: ([0, 1], [1.0, 2.0]) for name in names})
    assert legend_of(ax) == ["sam_rho_0.05_seed_0", "adamw_seed_0"]
    # Where shortening alone keeps names apart, folders are kept
    (label,) = legend_of(plots.draw_loss_slices({names[0]: ([0, 1], [1.0, 2.0])}))
    assert label == "outputs/rotte…checkpoint-500"


def test_files_are_the_same_for_the_same_input_with_text_as_text(tmp_path):
    written = []
    for folder in ("first", "second"):
        ax = plots.draw_m_sharpness({"sam": rows(1.0)}, rho=0.05)
        written.append([path.read_bytes() for path in plots.save(ax.figure, tmp_path / folder, "m")])
    assert written[0] == written[1]
    svg = written[0][1].decode()
    assert "examples that share one ε</text>" in svg and "<dc:date>" not in svg
    with Image.open(tmp_path / "first" / "m.png") as image:
        assert image.width == round(plot_style.COLUMN * 200)
        assert round(image.info["dpi"][0]) == 200


def test_settings_and_pyplot_are_left_alone(tmp_path):
    code = (
        "import matplotlib\nbefore = dict.copy(matplotlib.rcParams)\n"
        "from sam_hf import plots\n"
        "ax = plots.draw_loss_slices({'sam': ([0, 1], [1, 2])})\n"
        f"plots.save(ax.figure, {str(tmp_path)!r}, 'slices')\n"
        "assert dict.copy(matplotlib.rcParams) == before\n"
        "from matplotlib import pyplot\nassert not pyplot.get_fignums()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_help_shows_the_functions():
    text = pydoc.plain(pydoc.render_doc(plots))
    assert all(f"{name}(" in text for name in plots.__all__)


def test_without_matplotlib_the_error_names_the_extra():
    code = "import sys; sys.modules['matplotlib'] = None\nfrom sam_hf import plots; plots.save"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 1 and 'pip install "sam-hf[plot]"' in run.stderr

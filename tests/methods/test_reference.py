"""The reference agrees with numbers computed by hand, so that an error in it cannot look like agreement."""

from __future__ import annotations

import math

import pytest
import torch
from reference import SGD, AdamW
from reference_methods import DEFAULTS, Run, ascent_part, ceil_of_product, nbar, radius

ORIGIN = torch.zeros(2, dtype=torch.float64)


def bowl(curvature):
    """Return the loss ½ Σ aᵢ wᵢ² + ⟨x, w⟩. At the origin, the gradient is the example x, and s = x + a·ε."""
    a = torch.tensor(curvature, dtype=torch.float64)
    return lambda w, x: 0.5 * (a * w * w).sum() + (torch.tensor(x, dtype=torch.float64) * w).sum()


def run_of(method, curvature=(1.0, 1.0), total=4, optimizer=None, w=ORIGIN, **settings) -> Run:
    settings = {"rho": 2.0, "base_lr": 1.0, "batch_size": 1} | settings
    return Run(bowl(curvature), w.clone(), optimizer or SGD(), total=total, method=method, **settings)


def update_gradient(run: Run, *examples, lr=1.0) -> list[float]:
    """Return u of an update from the origin with one example per process. SGD with learning rate 1 goes to −u."""
    run.w = ORIGIN.clone()
    run.update([[[(x, 1.0)]] for x in examples], lr)
    return (-run.w / lr).tolist()


def close(*values):
    return pytest.approx(values, rel=1e-12, abs=1e-12)


def test_sam():
    run = run_of("sam")
    assert update_gradient(run, (3.0, 4.0)) == close(3 + 1.2, 4 + 1.6)
    assert update_gradient(run_of("sam", p=math.inf), (3.0, -4.0)) == close(5.0, -6.0)
    # Two steps of radius 1 from (3, 0) have the same direction; the gradient only grows
    assert update_gradient(run_of("sam", k=2), (3.0, 0.0)) == close(5.0, 0.0)
    assert update_gradient(run, (0.0, 0.0)) == close(0.0, 0.0)


@pytest.mark.parametrize("eta", [0.01, 1.0])
def test_asam_measures_only_weights_relative_to_their_size(eta):
    w = torch.tensor([3.0, -4.0], dtype=torch.float64)
    run = run_of("asam", w=w, scaled=torch.tensor([True, False]), options={"eta": eta})
    # The gradient at w is w itself, and w − (w + ε) = −ε
    run.update([[[((0.0, 0.0), 1.0)]]], 1.0)
    length = math.hypot((3 + eta) * 3, 4.0)
    assert (-run.w).tolist() == close(2 * (3 + eta) ** 2 * 3 / length, 2 * -4.0 / length)
    # ‖ε/T‖ is the radius
    assert math.hypot(float(run.w[0]) / (3 + eta), float(run.w[1])) == pytest.approx(2.0, rel=1e-12)


def test_asam_keeps_t_of_w_in_all_its_steps():
    w = torch.tensor([1.0, 0.0], dtype=torch.float64)
    run = run_of("asam", w=w, scaled=torch.tensor([True, True]), options={"eta": 1.0}, k=2)
    run.update([[[((0.0, 0.0), 1.0)]]], 1.0)
    # T = 2 on the first axis, so each step has length 2. With T at w + ε the lengths would be 2 and 4
    assert (-run.w).tolist() == close(4.0, 0.0)


def test_gsam():
    # ε = (1.2, 1.6), s = (4.2, 7.2), ⟨g, s⟩ = 41.4, ‖s‖² = 69.48
    orthogonal = (3 - 41.4 / 69.48 * 4.2, 4 - 41.4 / 69.48 * 7.2)
    assert orthogonal[0] * 4.2 + orthogonal[1] * 7.2 == pytest.approx(0.0, abs=1e-12)
    expected = close(4.2 - 0.4 * orthogonal[0], 7.2 - 0.4 * orthogonal[1])
    assert update_gradient(run_of("gsam", (1.0, 2.0)), (3.0, 4.0)) == expected
    assert update_gradient(run_of("gsam", (1.0, 2.0), options={"alpha": 0.0}), (3.0, 4.0)) == close(4.2, 7.2)


def test_wsam():
    # s − g = (1.2, 3.2), γ/(1−γ) = 9
    assert update_gradient(run_of("wsam", (1.0, 2.0)), (3.0, 4.0)) == close(3 + 10.8, 4 + 28.8)
    assert update_gradient(run_of("wsam", (1.0, 2.0), options={"gamma": 0.5}), (3.0, 4.0)) == close(4.2, 7.2)


def test_decoupled_wsam_keeps_the_sharpness_out_of_the_momentum():
    run = run_of("wsam", (1.0, 2.0), optimizer=SGD(momentum=0.5), options={"decouple": True})
    assert update_gradient(run, (3.0, 4.0)) == close(3 + 10.8, 4 + 28.8)
    # g = (0, 1): ε = (0, 2), s − g = (0, 4); the velocity is half of the first g
    assert update_gradient(run, (0.0, 1.0)) == close(1.5, 2 + 1 + 36.0)
    # Weight decay comes before the correction and does not change it
    decayed = run_of("wsam", optimizer=AdamW(ORIGIN + 1), w=ORIGIN + 1, options={"decouple": True})
    decayed.update([[[((2.0, -1.0), 1.0)]]], 0.1)
    assert decayed.w.tolist() == close(1 - 0.1 - 0.1 * (1 - 1e-8 / 3) - 0.1 * 18.0, 1 - 0.1)


def test_fsam_subtracts_the_average_of_before():
    run = run_of("fsam")
    assert update_gradient(run, (3.0, 4.0)) == close(3 + 1.2, 4 + 1.6)  # d = g, m = g
    assert update_gradient(run, (3.0, 0.0)) == close(3.0, -2.0)  # d = (0, −4), m = (3, 3.6)
    assert update_gradient(run, (3.0, 4.6)) == close(3.0, 4.6 + 2.0)  # d = (0, 1)
    assert run.averages[0].tolist() == close(3.0, 3.7)
    other = run_of("fsam", options={"sigma": 0.5, "lambda": 0.0})
    update_gradient(other, (2.0, 4.0))
    assert update_gradient(other, (1.0, 3.0)) == close(1.0, 5.0)  # d = (0, 1)
    assert other.averages[0].tolist() == close(1.0, 3.0)


def test_vasso_averages_its_direction():
    run = run_of("vasso")
    assert update_gradient(run, (3.0, 4.0)) == close(3 + 1.2, 4 + 1.6)
    assert update_gradient(run, (-4.5, -1.0)) == close(-4.5, 1.0)  # d = .6 (3, 4) + .4 g = (0, 2)
    assert update_gradient(run, (5.0, -3.0)) == close(7.0, -3.0)  # d = (2, 0)


def test_averages_advance_once_per_group_and_not_on_plain_updates():
    run = run_of("fsam", m=1, batch_size=2, interval=2)
    run.update([[[((3.0, 4.0), 0.5), ((3.0, 0.0), 0.5)]]], 1.0)
    # s of the groups: (1.5 + .6, 2 + .8) and (1.5, −1): d = (1.5, 0) − (1.5, 2)
    assert (-run.w).tolist() == close(3.6, 1.8)
    assert run.averages[0].tolist() == close(1.5, 1.8)
    run.update([[[((9.0, 9.0), 1.0)]]], 1.0)
    assert run.averages[0].tolist() == close(1.5, 1.8)


def test_looksam_adds_the_stored_direction_between_its_updates():
    run = run_of("looksam", (1.0, 2.0), rho=5.0, interval=2, start=0.5, total=6)
    # Updates 0 to 2 come before the start, 3 is not due: plain without s_v
    for _ in range(4):
        assert update_gradient(run, (1.0, 2.0)) == close(1.0, 2.0)
    # s = (6, 12), s_v = s − 66/25 g = (−1.92, 1.44), of norm 2.4
    assert update_gradient(run, (3.0, 4.0)) == close(6.0, 12.0)
    assert run.s_v.tolist() == close(-1.92, 1.44)
    assert update_gradient(run, (5.0, 12.0)) == close(5 - 0.7 * 13 * 0.8, 12 + 0.7 * 13 * 0.6)
    # s ∥ g: nothing to add
    parallel = run_of("looksam", interval=2)
    assert update_gradient(parallel, (3.0, 0.0)) == close(5.0, 0.0)
    assert update_gradient(parallel, (3.0, 4.0)) == close(3.0, 4.0)


def test_msam_goes_against_the_momentum():
    run = run_of("msam", optimizer=SGD(momentum=0.5))
    assert update_gradient(run, (3.0, 4.0)) == close(3.0, 4.0)
    # ε = −2 (.6, .8); the velocity (3, 4) is halved and s added
    assert update_gradient(run, (1.0, 0.0)) == close(1.5 + 1 - 1.2, 2 - 1.6)
    adam = run_of("msam", optimizer=AdamW(ORIGIN))
    adam.update([[[((3.0, 4.0), 1.0)]]], 1.0)
    adam.w = ORIGIN.clone()
    # The first moment is .1 (3, 4) without Adam's correction, whose factor cancels
    value = adam.update([[[((0.0, 10.0), 1.0)]]], 1.0)
    assert value.gradient.tolist() == close(-1.2, 10 - 1.6)
    assert value.loss == pytest.approx(2.0 - 16.0)


def test_nbar_shrinks_the_factor_with_the_smaller_gradient():
    a, b, large, small = (torch.tensor([[x]], dtype=torch.float64) for x in (2.0, 3.0, 1.0, -0.5))
    assert [float(x) for x in nbar(a, b, large, small, 0.5, 0.2)] == close(2.2, 2.7)
    assert [float(x) for x in nbar(a, b, small, large, 0.5, 0.2)] == close(1.8, 3.3)
    assert [float(x) for x in nbar(a, b, large, -large, 0.5, 0.2)] == close(2.2, 2.7)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [2.0, 2.0, 2.0, 2.0, 2.0]),
        ("linear", [2.0, 1.75, 1.5, 1.25, 1.0]),
        ("cosine", [2.0, 1.5 + 0.5 * math.sqrt(0.5), 1.5, 1.5 - 0.5 * math.sqrt(0.5), 1.0]),
        ("lr", [1.25, 1.5, 2.0, 1.5, 1.25]),
        ("warmup", [0.0, 2 / 3, 4 / 3, 2.0, 2.0]),
    ],
)
def test_radius(schedule, expected):
    rates = [0.25, 0.5, 1.0, 0.5, 0.25]
    values = [radius(schedule, 2.0, 1.0, 0.5, t, 5, rates[t]) for t in range(5)]
    assert values == pytest.approx(expected, rel=1e-12)


def test_share_is_the_decimal_number():
    assert [ceil_of_product(0.55, 20), ceil_of_product(0.07, 100), ceil_of_product(0.28, 25)] == [11, 7, 7]
    assert [ceil_of_product(0.25, 8), ceil_of_product(0.25, 9), ceil_of_product(1.0, 3)] == [2, 3, 3]


def test_ascent_part_weighs_as_much_as_its_group():
    part = ascent_part([("a", 0.25), ("b", 0.25), ("c", 0.5)], 0.5)
    assert part == [("a", 0.5), ("b", 0.5)]
    run = run_of("sam", fraction=0.5, batch_size=2)
    value = run.update([[[((3.0, 4.0), 0.5), ((1.0, 0.0), 0.5)]]], 1.0)
    # ε follows the first example, s is the mean over both
    assert (-run.w).tolist() == close(2 + 1.2, 2 + 1.6)
    assert value.loss == 0.0 and value.perturbed_loss == pytest.approx(2.0 + 2 * 1.2 + 2 * 1.6)
    # A mean of g on half of the examples is combined with s on all
    weighted = run_of("wsam", fraction=0.5, batch_size=2)
    weighted.update([[[((3.0, 4.0), 0.5), ((1.0, 0.0), 0.5)]]], 1.0)
    assert (-weighted.w).tolist() == close(3 + 9 * (3.2 - 3), 4 + 9 * (3.6 - 4))


def test_timing():
    run = run_of("sam", total=6, interval=2, start=0.3)
    radii = [run.update([[[((3.0, 4.0), 1.0)]]], 1.0).rho for _ in range(6)]
    assert radii == [0.0, 0.0, 2.0, 0.0, 2.0, 0.0]


@pytest.mark.parametrize("method", DEFAULTS)
def test_mask(method):
    """The perturbed coordinate has the whole radius. The other keeps its own gradient in every combination."""
    optimizer = SGD(momentum=0.5)
    scaled = torch.tensor([True, True])
    run = run_of(method, (3.0, 1.0), optimizer=optimizer, mask=torch.tensor([True, False]), scaled=scaled, interval=2)
    optimizer.velocity = torch.tensor([-1.0, -7.0], dtype=torch.float64)
    eta = 0.01 if method == "asam" else 1.0
    s = 3.0 + 6.0 * eta
    u = {"wsam": 3.0 + 9 * 6.0}.get(method, s)  # g ∥ s in one dimension
    assert update_gradient(run, (3.0, 4.0)) == close(-0.5 + u, -3.5 + 4.0)
    if method == "looksam":
        assert run.s_v.tolist() == close(0.0, 0.0)
    before = run.optimizer.velocity.tolist()
    assert update_gradient(run, (3.0, 4.0)) == close(before[0] / 2 + 3.0, before[1] / 2 + 4.0)


def test_ranks_perturb_by_their_own_gradient_unless_synchronised():
    assert update_gradient(run_of("sam"), (3.0, 0.0), (0.0, 1.0)) == close(1.5 + 1.0, 0.5 + 1.0)
    # The averages are (0, 2) and s = (0, 2 + 2) with it
    shared = run_of("sam", synchronised=True)
    assert update_gradient(shared, (3.0, 4.0), (-3.0, 0.0)) == close(0.0, 4.0)
    # Each rank's own average of directions: d = (0, 2) on the first, (3, 0) on the second
    own = run_of("vasso")
    update_gradient(own, (3.0, 4.0), (3.0, 0.0))
    assert update_gradient(own, (-4.5, -1.0), (3.0, 0.0)) == close((-4.5 + 3 + 2) / 2, (-1 + 2) / 2)
    # gsam: g = (1.5, .5) and s = (2.5, 1.5) are averages over ranks before they are combined
    scale = (1.5 * 2.5 + 0.5 * 1.5) / (2.5**2 + 1.5**2)
    expected = close(2.5 - 0.4 * (1.5 - scale * 2.5), 1.5 - 0.4 * (0.5 - scale * 1.5))
    assert update_gradient(run_of("gsam"), (3.0, 0.0), (0.0, 1.0)) == expected


@pytest.mark.parametrize("method", DEFAULTS)
def test_synchronised_ranks_are_one_process_on_all_examples(method):
    data = torch.randn(6, 4, 2, generator=torch.Generator().manual_seed(0)).tolist()
    one, two = (
        run_of(
            method,
            (1.0, 3.0),
            total=6,
            optimizer=SGD(momentum=0.5),
            w=ORIGIN + 1,
            scaled=torch.tensor([True, False]),
            interval=2 if method == "looksam" else 1,
            batch_size=batch_size,
            synchronised=True,
        )
        for batch_size in (4, 2)
    )
    for batch in data:
        one.update([[[(x, 0.25) for x in batch]]], 0.1)
        two.update([[[(x, 0.5) for x in batch[:2]]], [[(x, 0.5) for x in batch[2:]]]], 0.1)
    assert torch.allclose(two.w, one.w, rtol=1e-12)
    assert not torch.allclose(one.w, torch.ones_like(one.w), rtol=0.05)

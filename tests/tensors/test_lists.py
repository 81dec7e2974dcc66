"""Lists of tensors: chunks for torch._foreach_*, arithmetic in which NaN does not spread, and code that uses them."""

from __future__ import annotations

import pytest
import torch

from sam_hf.methods import Ascent
from sam_hf.methods._combination import add_scaled
from sam_hf.tensors import lists
from sam_hf.update.perturbation import Perturbation
from sam_hf.update.running_means import TOGETHER, RunningMeans

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def test_chunks_are_uniform_and_of_bounded_size():
    sizes = [3, 3, 10, 0, 2, 2, 2]
    tensors = [torch.full((size,), float(place)) for place, size in enumerate(sizes)]
    tensors[4] = tensors[4].double()
    others = [t.double() for t in tensors]
    chunks = list(lists.uniform_chunks(tensors, others, max_elements=6))
    places = [[int(t[0]) if t.numel() else 3 for t in chunk] for chunk, _ in chunks]
    assert places == [[0, 1], [2], [3, 5, 6], [4]]
    for chunk, other_chunk in chunks:
        assert len({t.dtype for t in chunk}) == len({t.dtype for t in other_chunk}) == 1
        assert [t.tolist() for t in chunk] == [t.tolist() for t in other_chunk]
    assert [len(chunk) for (chunk,) in lists.uniform_chunks(tensors)] == [6, 1]
    assert not list(lists.uniform_chunks([], []))


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError):
        list(lists.uniform_chunks([torch.ones(1)], []))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_clear_unless_keeps_every_bit_or_clears_all(dtype):
    values = torch.tensor([1.5, -0.0, float("nan"), float("inf"), -float("inf"), 6e-8], dtype=dtype)
    strided = torch.stack([values, values], dim=1)[:, 0]
    tensors = [values.clone(), values.clone().reshape(2, 3).t(), strided, values[0].clone(), values[:0]]
    expected = [t.clone() for t in tensors]
    lists.clear_unless(tensors, torch.tensor(True))
    for actual, before in zip(tensors, expected, strict=True):
        torch.testing.assert_close(actual, before, rtol=0, atol=0, equal_nan=True)
    assert tensors[0].signbit()[1]
    lists.clear_unless(tensors, torch.tensor(False))
    assert not any(t.count_nonzero() for t in tensors)


@pytest.mark.parametrize("condition", [True, False])
def test_replace_if_replaces_or_changes_nothing(condition):
    targets = [torch.tensor([1.0, 2.0]), torch.tensor([3.0], dtype=torch.float64)]
    values = [torch.tensor([5.0, 6.0]), torch.tensor([7.0], dtype=torch.float64)]
    if not condition:
        targets[0][0], values[0][1] = torch.nan, torch.inf
    expected = [t.clone() for t in (values if condition else targets)]
    lists.replace_if(targets, values, torch.tensor(condition))
    torch.testing.assert_close(targets, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_cast_copies_only_tensors_of_another_dtype(dtype):
    tensors = [torch.ones(2, dtype=dtype), torch.ones(3, dtype=torch.float64)]
    wide = lists.cast(tensors)
    assert [t.dtype for t in wide] == [torch.promote_types(dtype, torch.float32), torch.float64]
    assert wide[1] is tensors[1] and (wide[0] is tensors[0]) == (dtype in (torch.float32, torch.float64))
    assert all(t.eq(1).all() for t in wide)


def test_joined_and_split():
    tensors = [torch.arange(6.0).reshape(2, 3).t(), torch.tensor(7.0), torch.empty(0, 2)]
    vector = lists.joined(tensors)
    assert vector.tolist() == [0, 3, 1, 4, 2, 5, 7]
    torch.testing.assert_close(lists.split(vector, tensors), tensors, rtol=0, atol=0)


def test_a_gradient_that_is_not_finite_leaves_the_other_alone():
    """In gsam and wsam, fp16's scaler looks at s."""
    s, g = [torch.tensor([1.0, 2.0]), torch.tensor([3.0])], [torch.tensor([torch.nan, torch.inf]), torch.ones(1)]
    add_scaled(s, torch.tensor(1.0), g, torch.tensor(0.0))
    assert [t.tolist() for t in s] == [[1, 2], [3]]


def test_ascent_steps_add_up_before_they_are_rounded():
    """Each step is less than half of bf16's resolution at 1; three steps together are more."""
    weights = [torch.ones(2, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)]
    late = torch.ones(2, dtype=torch.bfloat16)  # without a gradient in the first step
    one = torch.ones(())
    with Perturbation(keep_epsilon=True) as perturbation:
        for step in range(3):
            perturbed = weights if step == 0 else [*weights, late]
            directions = [torch.full_like(w, 2**-9, dtype=torch.float32) for w in perturbed]
            perturbation.add(perturbed, Ascent(directions, one, one, one > 0), 1.0)
        assert all(w.eq(1 + 2**-7).all() for w in weights)
        assert late.eq(1).all(), "two steps are a tie, which is rounded to the even neighbour"
    assert all(w.eq(1).all() for w in [*weights, late])


def test_a_value_that_is_not_finite_is_left_out_of_a_mean():
    means = RunningMeans(torch.device("cpu"))
    for value in [*map(float, range(TOGETHER)), torch.tensor(torch.nan), torch.tensor(9.0), float("inf"), 3.0]:
        means.add("sam_rho", value)
    for value in range(2 * TOGETHER + 1):
        means.add("sam_skipped", torch.tensor(float(value)))
    expected = {"sam_rho": (sum(range(TOGETHER)) + 12) / (TOGETHER + 2), "sam_skipped": float(TOGETHER)}
    assert means.drain(lambda sums: sums.clone()) == expected
    assert not means.drain(lambda sums: sums.clone())

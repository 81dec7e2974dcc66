"""
The number of launches that the package adds to those of the passes is the same for a deep and a shallow model. On a
GPU, an update of a small model takes as long as the launches of its operations.
"""

from __future__ import annotations

import pytest
import torch
from common import PERTURBING
from operations import Launches
from tiny import bert, sentences, trained

CASES = {method: {"sam_method": method} for method in PERTURBING}
# This includes an update with reuse between two SAM updates
CASES["looksam"]["sam_interval"] = 2
CASES |= {
    "wsam, decoupled": {"sam_method": "wsam", "sam_method_kwargs": {"decouple": True}},
    "fsam, half of the average": {"sam_method": "fsam", "sam_method_kwargs": {"sigma": 0.5}},
    "p = inf": {"sam_p": float("inf")},
    "radius auto": {"sam_rho_schedule": "auto", "sam_rho": None},
    "fraction": {"sam_ascent_fraction": 0.5},
    "gsam, m = micro-batch": {"sam_method": "gsam", "sam_m": 4, "gradient_accumulation_steps": 2},
    "stochastic rounding": {"dtype": torch.bfloat16, "sam_stochastic_rounding": True},
    "bf16 weights, ascent steps": {"dtype": torch.bfloat16, "sam_ascent_steps": 2},
}
CASES |= {f"{method}, bf16 weights": CASES[method] | {"dtype": torch.bfloat16} for method in PERTURBING}


def launches(output_dir, layers, dtype=torch.float32, **options):
    """Return the launches of four updates minus those of two, to leave out what is done once per run."""
    numbers = []
    for updates in (2, 4):
        model = bert(num_hidden_layers=layers, dtype=dtype)
        with Launches() as counted:
            trained(model, sentences(32), output_dir, optim="adamw_torch", max_steps=updates, **options)
        numbers.append(counted)
    few, many = numbers
    return {function: n - few.by_function[function] for function, n in many.by_function.items()}


@pytest.mark.parametrize("name", CASES)
def test_a_deeper_model_takes_no_more_launches(tmp_path, name):
    shallow, deep = (launches(tmp_path, layers, **CASES[name]) for layers in (1, 3))
    assert 0 < sum(shallow.values())
    assert deep == shallow


def test_operations_without_a_kernel_for_lists_count_once_per_tensor():
    """Otherwise the test above would count one launch for an operation that makes many."""

    def counted(operation, *args):
        with Launches() as counted:
            ask = compile("operation(*args)", sam_hf_file(), "eval")
            eval(ask, {"operation": operation, "args": args})
        return counted.number

    three = [torch.ones(2) for _ in range(3)]
    one = torch.ones(())
    assert counted(torch._foreach_mul_, three, one) == 1
    assert counted(torch._foreach_mul_, three, one.double()) == 3
    assert counted(torch._foreach_add_, three, [t.double() for t in three]) == 3
    assert counted(torch._foreach_copy_, three, [t.double() for t in three]) == 1
    assert counted(torch._foreach_copy_, three, [one, one.double(), one]) == 3
    assert counted(torch._foreach_norm, three, 2) == 1
    assert counted(torch._foreach_norm, three, 3) == 3
    assert counted(torch.stack, three) == 1
    assert counted(torch.Tensor.view, three[0], 1, 2) == 0


def sam_hf_file():
    import sam_hf

    return sam_hf.__file__

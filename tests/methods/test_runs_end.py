"""A run leaves nothing on the optimizer, and a failed attempt leaves no gradient."""

from __future__ import annotations

import pytest
import torch
from common import run_of
from tiny import assert_same, flat, perceptron, points, relative_difference, snapshot, trained, trainer_of

STEPPING = [("nbar", {"schedule": "constant"}), ("wsam", {"decouple": True})]


@pytest.mark.parametrize("ends", ["well", "in an exception"])
@pytest.mark.parametrize(("method", "options"), STEPPING, ids=str)
def test_the_optimizer_is_left_alone_after_a_run(tmp_path, method, options, ends):
    """The method does not act in a loop of the user that goes on with the optimizer."""
    model, trainer = run_of(method, tmp_path, sam_method_kwargs=options)
    if ends == "in an exception":
        trainer.accelerator.clip_grad_norm_ = lambda *_: 1 / 0
        with pytest.raises(ZeroDivisionError):
            trainer.train()
    else:
        trainer.train()
    optimizer = trainer.optimizer.optimizer
    for group in optimizer.param_groups:
        group["lr"] = 1.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.state.clear()
    before = snapshot(model)
    optimizer.step()
    assert_same(snapshot(model), before)


@pytest.mark.parametrize("fails_in", [3, 4])
def test_a_smaller_batch_starts_without_gradients_of_the_larger(tmp_path, fails_in):
    """Memory runs out in the second of a window's three groups, when the first has left its gradient."""
    model, expected = perceptron(), perceptron()
    passes = 0

    def exhaust(module, args, output):
        nonlocal passes
        passes += 1
        if passes == fails_in:
            raise torch.OutOfMemoryError("CUDA out of memory.")

    run = {"gradient_accumulation_steps": 3, "sam_rho": 0.2, "max_steps": 3}
    trainer = trainer_of(
        model, points(48), tmp_path, per_device_train_batch_size=4, sam_m=4, auto_find_batch_size=True, **run
    )
    model.register_forward_hook(exhaust)
    trainer.train()
    size = trainer.state.train_batch_size
    assert size < 4
    trained(expected, points(48), tmp_path, per_device_train_batch_size=size, sam_m=4 // size * size, **run)
    assert relative_difference(flat(model), flat(expected)) < 1e-12

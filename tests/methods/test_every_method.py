"""Tests that every method in the table has to pass. A new method is tested without further work."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from common import ADAPTERS, PERTURBING, model_for, run_of, updates
from tiny import Watch, assert_same, flat, relative_difference, sentences, snapshot
from transformers import Trainer

from sam_hf.methods import METHODS
from sam_hf.update.random_state import RandomState


@pytest.mark.parametrize("method", METHODS)
def test_has_its_metadata(method):
    described = METHODS[method]
    assert described.name == method
    assert described.paper.startswith("https://")
    assert described.citation.lstrip().startswith("@")
    if method not in ADAPTERS:
        assert described.default_rho > 0


@pytest.mark.parametrize("method", METHODS)
def test_is_not_plain_training(tmp_path, method):
    weights = []
    for name in (method, "none"):
        model = model_for(method)
        _, trainer = run_of(method, tmp_path, sam_method=name, sam_rho=None)
        trainer.model.load_state_dict(model.state_dict())
        trainer.train()
        weights.append(flat(trainer.model))
    assert relative_difference(*weights) > 1e-6


@pytest.mark.parametrize("method", METHODS)
def test_no_callback_sees_other_weights(tmp_path, method):
    seen, at, flags = [], {}, []

    def check(event, model):
        seen.append(event)
        flags.append([p.requires_grad for p in model.parameters()])
        if event == "on_step_begin":
            at["begin"] = snapshot(model)
        elif event == "on_pre_optimizer_step":
            # A method that changes the weights permanently may have done so by now
            assert method in ADAPTERS or not different(model, at["begin"])
        elif event == "on_step_end":
            at["end"] = snapshot(model)
        else:
            assert_same(snapshot(model), at["end"])

    def different(model, expected):
        return [name for name, tensor in snapshot(model).items() if not torch.equal(tensor, expected[name])]

    each = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    _, trainer = run_of(method, tmp_path, eval_dataset=sentences(4), callbacks=[Watch(check)], **each)
    trainer.train()
    assert set(seen) == set(Watch.EVENTS)
    assert all(now == flags[0] for now in flags)


@pytest.mark.parametrize("method", PERTURBING)
def test_radius_0_is_plain_training_bit_for_bit(tmp_path, method):
    model, trainer = run_of(method, tmp_path, dropout=0.2, sam_rho=0.0)
    trainer.train()
    random = RandomState()
    plain_model, plain = run_of(method, tmp_path, dropout=0.2, trainer_class=Trainer)
    plain.train()
    assert RandomState() == random
    assert_same(snapshot(model), snapshot(plain_model))
    keys = ("loss", "grad_norm", "learning_rate")
    assert [[e[key] for key in keys] for e in updates(trainer)] == [[e[key] for key in keys] for e in updates(plain)]
    assert trainer.state.total_flos == plain.state.total_flos


@pytest.mark.parametrize("method", METHODS)
def test_two_micro_batches_of_four_equal_one_of_eight(tmp_path, method):
    # Trainer divides this loss by the number of micro-batches
    weights = []
    for batch_size, accumulation in [(8, 1), (4, 2)]:
        model, trainer = run_of(
            method,
            tmp_path,
            dtype=torch.float64,
            data=sentences(24),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            compute_loss_func=lambda outputs, labels, num_items_in_batch: (
                torch.nn.functional.cross_entropy(outputs["logits"], labels, reduction="sum") / num_items_in_batch
            ),
        )
        trainer.train()
        weights.append(flat(model))
    # Adam divides gradients by their size, which makes rounding in the smallest ones visible
    assert relative_difference(*weights) < 1e-9


class Failure(Exception):
    pass


def faulty(model, fails_at: int, where: str) -> list[int]:
    """Make the model's `fails_at`-th call in training fail, and return the list of calls."""
    calls = []

    def fail(module, args, output):
        calls.append(len(calls) + 1)
        if calls[-1] == fails_at:
            if where == "forward":
                raise Failure
            output["logits"].register_hook(lambda gradient: (_ for _ in ()).throw(Failure()))

    model.register_forward_hook(fail)
    return calls


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("method", METHODS)
def test_exception_in_any_pass(tmp_path, method, where):
    """The weights are those from the start of the update, and the next run equals that of a new trainer."""
    fresh, trainer = run_of(method, tmp_path, max_steps=2, lr_scheduler_type="constant")
    calls = faulty(fresh, 0, where)
    trainer.train()
    for fails_at in range(1, len(calls) + 1):
        at = {}

        def remember(event, model, at=at):
            if event == "on_step_begin":
                at["begin"] = snapshot(model)

        model, trainer = run_of(
            method, tmp_path, callbacks=[Watch(remember)], max_steps=2, lr_scheduler_type="constant"
        )
        start, flags = snapshot(model), [p.requires_grad for p in model.parameters()]
        faulty(model, fails_at, where)
        with pytest.raises(Failure):
            trainer.train()
        assert_same(snapshot(model), at["begin"])
        assert [p.requires_grad for p in model.parameters()] == flags
        model.load_state_dict(start)
        trainer.optimizer = trainer.lr_scheduler = None  # otherwise Trainer would continue with its moments
        trainer.train()
        assert_same(snapshot(model), snapshot(fresh))


@pytest.mark.parametrize("method", METHODS)
def test_resumed_from_every_update_it_ends_bit_for_bit_the_same(tmp_path, method):
    each = {"dropout": 0.2, "save_strategy": "steps", "save_steps": 1, "train_sampling_strategy": "random"}
    model, whole = run_of(method, tmp_path / "whole", **each)
    whole.train()
    for step in range(1, 6):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed, again = run_of(method, folder, **each)
        again.train(resume_from_checkpoint=True)
        assert_same(snapshot(resumed), snapshot(model))
        # The last entry is the summary, which contains the time
        assert again.state.log_history[:-1] == whole.state.log_history[:-1]


@pytest.mark.parametrize("method", METHODS)
def test_checkpoint_is_trainers_own_with_the_state_in_separate_files(tmp_path, method):
    each = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    files = {}
    for name in ("none", method):
        _, trainer = run_of(method, tmp_path / name, sam_method=name, **each)
        trainer.train()
        checkpoint = tmp_path / name / "checkpoint-2"
        files[name] = {path.name for path in checkpoint.iterdir()}
        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        assert {key for state in optimizer["state"].values() for key in state} == {"step", "exp_avg", "exp_avg_sq"}
    more = files[method] - files["none"]
    assert "sam_state.json" in more
    assert more <= {"sam_state.json", "sam_state.safetensors"}


@pytest.mark.parametrize("method", METHODS)
def test_metrics_are_finite(tmp_path, method):
    _, trainer = run_of(method, tmp_path, dropout=0.2)
    trainer.train()
    logged = updates(trainer)
    assert len(logged) == 6
    assert all(math.isfinite(value) for entry in logged for value in entry.values())
    if method in PERTURBING:
        assert "sam_rho" in logged[0]


@pytest.mark.parametrize("method", PERTURBING)
def test_bf16_weights(tmp_path, method):
    """When the optimizer steps, the weights are those from the start of the update. Training changes them."""
    at = {}

    def check(event, model):
        if event == "on_step_begin":
            at["begin"] = snapshot(model)
        elif event == "on_pre_optimizer_step":
            assert_same(snapshot(model), at["begin"])

    model, trainer = run_of(method, tmp_path, dtype=torch.bfloat16, callbacks=[Watch(check)])
    start = flat(model)
    trainer.train()
    assert flat(model).isfinite().all()
    assert not torch.equal(flat(model), start)
    if "sam_sharpness" in updates(trainer)[0]:
        assert updates(trainer)[0]["sam_sharpness"] != 0


@pytest.mark.parametrize("method", METHODS)
def test_nothing_depends_on_the_loss_scale(tmp_path, method):
    # Powers of two scale floating-point numbers without rounding them
    runs = []
    for scale in (None, 2.0**4, 2.0**14):
        # accelerate unscales before clipping only in its own mixed precision
        model, trainer = run_of(method, tmp_path, max_grad_norm=0.0)
        if scale is not None:
            # accelerate makes no scaler on the CPU; `prepare` passes this one to the optimizer. A constant scale would
            # cancel in directions that come from averages
            trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        trainer.train()
        runs.append((model, updates(trainer)))
    (unscaled, expected), *scaled = runs
    for model, logged in scaled:
        assert_same(snapshot(model), snapshot(unscaled))
        for entry, other in zip(logged, expected, strict=True):
            assert entry.keys() == other.keys()
            same = entry.keys() - {"grad_norm"}  # Trainer logs it with the scale
            assert {key: entry[key] for key in same} == pytest.approx({key: other[key] for key in same}, rel=1e-5)


@pytest.mark.parametrize("method", PERTURBING)
def test_checkpoint_of_plain_trainer_resumes_with_a_state_of_its_own(tmp_path, method):
    """The run equals one in which the method starts at that update."""
    each = {"dropout": 0.2, "save_strategy": "steps", "save_steps": 3}
    late, trainer = run_of(method, tmp_path / "late", sam_start_ratio=0.5, **each)
    trainer.train()
    _, plain = run_of(method, tmp_path / "plain", trainer_class=Trainer, **each)
    plain.train()
    shutil.rmtree(tmp_path / "plain" / "checkpoint-6")
    model, resumed = run_of(method, tmp_path / "plain", **each)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 6
    assert_same(snapshot(model), snapshot(late))

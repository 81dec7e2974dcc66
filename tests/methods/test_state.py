"""The state of a method is in separate files, refused if they are broken, and free of the fp16 loss scale."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from common import run_of, updates
from reference_methods import DEFAULTS
from runs import both
from safetensors.torch import load_file
from tiny import Watch, assert_same, flat, perceptron, points, snapshot, trainer_of
from torch import nn
from transformers import TrainerCallback

from sam_hf import SAMTrainer
from sam_hf.methods import METHODS, Point, Products

REMEMBERING = ["fsam", "vasso", "looksam"]
SAVED = {"save_strategy": "steps", "save_steps": 1}
TENSORS, NUMBERS = "sam_state.safetensors", "sam_state.json"


def interrupted(folder, method="fsam", step=3, **changes):
    """Return the model at the end of a run, and an earlier checkpoint, the only one left in `folder`."""
    model, trainer = run_of(method, folder, **SAVED, **changes)
    trainer.train()
    for checkpoint in folder.glob("checkpoint-*"):
        if checkpoint.name != f"checkpoint-{step}":
            shutil.rmtree(checkpoint)
    return model, folder / f"checkpoint-{step}"


def resumed(folder, method="fsam", **changes):
    model, trainer = run_of(method, folder, **changes)
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 6
    return model


@pytest.mark.parametrize("method", METHODS)
def test_tensors_are_saved_by_methods_that_remember_some(tmp_path, method):
    _, checkpoint = interrupted(tmp_path, method)
    assert (checkpoint / TENSORS).exists() == (method in REMEMBERING)
    assert json.loads((checkpoint / NUMBERS).read_text())["method"] == method


@pytest.mark.parametrize("method", REMEMBERING)
def test_saved_tensors_are_what_the_formulas_remember(tmp_path, method):
    run, _, _ = both(tmp_path, method, trainer_options={"save_strategy": "steps", "save_steps": 6})
    tensors = load_file(tmp_path / "checkpoint-6" / TENSORS).values()
    (expected,) = [run.s_v] if method == "looksam" else run.averages.values()
    vectors = [t.flatten().double() for t in tensors if t.is_floating_point() and t.numel() > 1]
    assert sum(v.numel() for v in vectors) == expected.numel()
    norm = sum(float(v @ v) for v in vectors) ** 0.5
    assert norm == pytest.approx(float(expected.norm()), rel=1e-6)


CONTENTS = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "no safetensors": lambda path: path.write_bytes(b"\x80\x04" * 100),
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("method", REMEMBERING)
def test_broken_tensors_are_refused_by_name(tmp_path, method, content):
    _, checkpoint = interrupted(tmp_path, method)
    CONTENTS[content](checkpoint / TENSORS)
    with pytest.raises((ValueError, OSError)) as error:
        run_of(method, tmp_path)[1].train(resume_from_checkpoint=str(checkpoint))
    assert str(checkpoint / TENSORS) in str(error.value)


def test_broken_numbers_are_refused_by_name(tmp_path):
    """Without them, a method cannot know whether it has a state."""
    _, checkpoint = interrupted(tmp_path)
    (checkpoint / NUMBERS).write_text('{"version": 1, "met')
    with pytest.raises((ValueError, OSError), match=NUMBERS):
        run_of("fsam", tmp_path)[1].train(resume_from_checkpoint=str(checkpoint))


@pytest.mark.parametrize(("first", "then"), [("fsam", "vasso"), ("vasso", "looksam"), ("looksam", "sam")])
def test_a_state_of_another_method_is_not_taken_over(tmp_path, first, then):
    _, checkpoint = interrupted(tmp_path / "one", first)
    bare = tmp_path / "other" / checkpoint.name
    shutil.copytree(checkpoint, bare)
    for path in bare.glob("sam_state*"):
        path.unlink()
    assert_same(snapshot(resumed(tmp_path / "one", then)), snapshot(resumed(tmp_path / "other", then)))


@pytest.mark.parametrize("method", REMEMBERING)
def test_the_state_matters(tmp_path, method):
    """Resuming without the state gives another result. Otherwise the tests of resuming would prove nothing."""
    model, checkpoint = interrupted(tmp_path, method, step=4)
    for path in checkpoint.glob("sam_state*"):
        path.unlink()
    assert not torch.equal(flat(resumed(tmp_path, method)), flat(model))


@pytest.mark.parametrize("method", METHODS)
def test_plain_training_resumes_from_a_checkpoint(tmp_path, method):
    _, checkpoint = interrupted(tmp_path, method)
    plain = run_of(method, tmp_path, sam_method="none", sam_rho=None)[1]
    plain.train(resume_from_checkpoint=str(checkpoint))
    assert plain.state.global_step == 6


@pytest.mark.parametrize("method", REMEMBERING)
def test_a_second_run_starts_without_the_state_of_the_first(tmp_path, method):
    model, trainer = run_of(method, tmp_path)
    start = snapshot(model)
    trainer.train()
    end = snapshot(model)
    model.load_state_dict(start)
    trainer.optimizer = trainer.lr_scheduler = None
    trainer.train()
    assert_same(snapshot(model), end)


class Overflow(nn.Module):
    """The identity. Its gradient is infinite in the passes that `now` accepts, like an overflow in fp16."""

    def __init__(self):
        super().__init__()
        self.passes, self.now = 0, lambda number: False

    def forward(self, x):
        self.passes += 1
        if self.training and self.now(self.passes):
            x = x.clone()
            x.register_hook(lambda gradient: gradient * torch.inf)
        return x


def on_one_batch(output_dir, method, overflows=lambda number: False, callbacks=(), **changes):
    """Train on the same 8 examples in every update, so that a skipped update does not change the data."""
    model = perceptron(Overflow).float()
    model.middle.now = overflows
    run = {"optim_args": "momentum=0.9", "per_device_train_batch_size": 8, "sam_rho": 0.1, "sam_method": method}
    data = points(8, torch.float32)
    trainer = trainer_of(model, data, output_dir, callbacks=callbacks, **run, **changes)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    trainer.train()
    return model, trainer


@pytest.mark.parametrize("method", ["fsam", "vasso"])
def test_an_overflow_leaves_the_average_as_it_was(tmp_path, method):
    weights = []
    watch = Watch(lambda event, model: weights.append(flat(model)) if event == "on_step_end" else None)
    # Passes 5 and 6 are those of the third update
    model, trainer = on_one_batch(tmp_path, method, lambda number: number in (5, 6), [watch], max_steps=7)
    assert [entry["sam_skipped"] for entry in updates(trainer)] == [0, 0, 1, 0, 0, 0, 0]
    assert torch.equal(weights[1], weights[2]) and not torch.equal(weights[2], weights[3])
    expected, _ = on_one_batch(tmp_path, method, max_steps=6)
    assert_same(snapshot(model), snapshot(expected))


def test_an_overflow_leaves_the_stored_direction_as_it_was(tmp_path):
    # SAM on updates 0 and 4, whose passes are 1, 2 and 6, 7; the second overflows
    model, _ = on_one_batch(tmp_path, "looksam", lambda number: number in (6, 7), max_steps=7, sam_interval=4)
    expected, _ = on_one_batch(tmp_path, "looksam", max_steps=6, sam_interval=100)
    assert_same(snapshot(model), snapshot(expected))


@pytest.mark.parametrize("passes", [(1, 2), (1,), (2,)], ids=str)
@pytest.mark.parametrize("method", [method for method in METHODS if method in DEFAULTS])
def test_an_overflow_in_the_first_update_leaves_finite_weights(tmp_path, method, passes):
    """There is no average yet."""
    model, _ = on_one_batch(tmp_path, method, lambda number: number in passes, max_steps=4, sam_interval=2)
    assert flat(model).isfinite().all()
    assert not torch.equal(flat(model), flat(perceptron().float()))


@pytest.mark.parametrize("finite", [True, False])
def test_looksam_forgets_the_part_of_what_an_update_did_not_use(finite):
    method = METHODS["looksam"]()
    used, unused = (torch.nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))

    def combine(parameters, is_finite):
        g, s = torch.tensor([1.0, 0.0]).double(), torch.tensor([1.0, 1.0]).double()
        n = len(parameters)
        products = Products(n * (g @ s), n * (g @ g), n * (s @ s), torch.tensor(is_finite))
        copies = [[vector.clone() for _ in parameters] for vector in (g, s)]
        method.combine(*copies, products, Point(parameters, parameters))

    combine([used, unused], True)
    assert method.tensors["part"][unused].tolist() == [0.0, 1.0]
    combine([used], finite)
    assert method.tensors["part"][unused].tolist() == ([0.0, 0.0] if finite else [0.0, 1.0])


class WithLossParameters(SAMTrainer):
    """A trainer whose loss has two parameters of the same shape outside the model, and uses the second."""

    def create_optimizer(self, model=None):
        super().create_optimizer(model)
        self.of_loss = [nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2)]
        self.optimizer.add_param_group({"params": self.of_loss})
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logits = model(inputs["x"])["logits"] * self.of_loss[1]
        return nn.functional.cross_entropy(logits, inputs["labels"])


class AtTheStart(TrainerCallback):
    """Calls `look` after the checkpoint is loaded and before the first update."""

    def __init__(self, look):
        self.look = look

    def on_train_begin(self, *args, **kwargs):
        self.look()


def test_parameters_outside_the_model_get_their_own_state_back(tmp_path):
    def make(steps):
        run = {"sam_method": "fsam", "sam_rho": 0.1, "save_strategy": "steps", "save_steps": 2, "max_steps": steps}
        return trainer_of(perceptron(), points(16), tmp_path, WithLossParameters, **run)

    def averages(trainer):
        return trainer._sam_method.method(trainer.sam_args).tensors["average"]

    first, second, found = make(2), make(3), []
    first.train()
    expected = averages(first)[first.of_loss[1]]
    second.add_callback(AtTheStart(lambda: found.append({p: t.clone() for p, t in averages(second).items()})))
    second.train(resume_from_checkpoint=True)
    assert torch.equal(found[0][second.of_loss[1]], expected) and expected.any()
    assert second.of_loss[0] not in found[0]

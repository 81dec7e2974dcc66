"""What an update costs beyond its passes: no wait for the device, no walk over the model, no memory that stays."""

from __future__ import annotations

import gc
import weakref
from collections import Counter

import pytest
import torch
from operations import asked_by_sam
from tiny import LENGTH, bert, perceptron, points, sentences, trained, trainer_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

import sam_hf
from sam_hf.methods import METHODS
from sam_hf.tensors.norms import global_norm


class HostReads(TorchDispatchMode):
    """Who read a tensor's value on the host, which on an accelerator waits for it."""

    def __init__(self):
        super().__init__()
        self.readers = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and (reader := asked_by_sam()):
            self.readers[reader] += 1
        return function(*args, **(kwargs or {}))


class ScaledTrainer(sam_hf.SAMTrainer):
    """fp16's scaler on the CPU, where accelerate makes none."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)


CASES = {
    "default": {},
    "ascent steps": {"sam_ascent_steps": 3},
    "m = micro-batch": {"sam_m": 4, "gradient_accumulation_steps": 2},
    "slices": {"sam_m": 2},
    "p": {"sam_p": 3.0},
    "bf16 weights": {"dtype": torch.bfloat16, "sam_stochastic_rounding": True},
    "scaler": {"trainer_class": ScaledTrainer},
    "fraction": {"sam_ascent_fraction": 0.5, "gradient_accumulation_steps": 2},
    "mask": {"sam_target_modules": ["second"]},
    "interval": {"sam_interval": 2},
    "learning rate": {"sam_rho_schedule": "lr", "lr_scheduler_type": "linear"},
    "decoupled": {"sam_method": "wsam", "sam_method_kwargs": {"decouple": True}},
}
# nbar needs adapters
CASES |= {method: {"sam_method": method, "optim": "adamw_torch"} for method in METHODS if method != "nbar"}
CASES |= {f"{method}, scaler": CASES[method] | CASES["scaler"] for method in METHODS if method != "nbar"}


@pytest.mark.parametrize("name", CASES)
def test_no_update_waits_for_the_device(tmp_path, name):
    options = dict(CASES[name])
    dtype = options.pop("dtype", torch.float32)

    def readers(updates):
        with HostReads() as reads:
            trained(
                perceptron().to(dtype), points(64, dtype), tmp_path, logging_steps=100, max_steps=updates, **options
            )
        return reads.readers

    # The first ten micro-batches are compared with their slices
    few, many = readers(10), readers(14)
    # It reads where the tensor is on the CPU only; the mode sees such reads
    assert many.pop("clear_if_not_finite", 0) > few.pop("clear_if_not_finite", 0)
    assert many == few, "only the first updates may ask"


@pytest.mark.parametrize("options", [{}, {"sam_m": 4, "gradient_accumulation_steps": 2}, {"sam_m": 2}], ids=str)
def test_the_model_is_walked_once_a_run(tmp_path, monkeypatch, options):
    walks = Counter()

    def counted(walk):
        def count(module, *args, **kwargs):
            if asked_by_sam():
                walks[walk.__name__] += 1
            return walk(module, *args, **kwargs)

        return count

    monkeypatch.setattr(nn.Module, "modules", counted(nn.Module.modules))
    monkeypatch.setattr(nn.Module, "named_parameters", counted(nn.Module.named_parameters))

    def walked(updates):
        walks.clear()
        trained(perceptron(lambda: nn.BatchNorm1d(6)), points(32), tmp_path, max_steps=updates, **options)
        return dict(walks)

    assert walked(1) == walked(6) == {"modules": 1, "named_parameters": 1}


def test_a_parameter_unfrozen_in_mid_run_is_perturbed(tmp_path):
    """What was looked up once must not be out of date."""

    class Unfreeze(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            model.first.requires_grad_(state.global_step >= 2)

    class Seeing(sam_hf.SAMTrainer):
        moved = ()

        def compute_loss(self, model, *args, **kwargs):
            self.moved += (model.first.weight.detach().clone(),)
            return super().compute_loss(model, *args, **kwargs)

    trainer = trainer_of(perceptron(), points(32), tmp_path, Seeing, [Unfreeze()], sam_rho=0.2, max_steps=4)
    trainer.train()
    pairs = zip(trainer.moved[::2], trainer.moved[1::2], strict=True)
    assert [not torch.equal(at_w, perturbed) for at_w, perturbed in pairs] == [False, False, True, True]


class Alive(TrainerCallback):
    """Tensors and objects that are alive at the end of some updates."""

    def __init__(self, at):
        self.at, self.counts = at, []

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step in self.at:
            gc.collect()
            objects = gc.get_objects()
            self.counts.append((sum(issubclass(type(o), torch.Tensor) for o in objects), len(objects)))


@pytest.mark.parametrize(
    ("options", "updates"),
    [({}, 2000), ({"sam_m": 2, "gradient_accumulation_steps": 2, "sam_ascent_steps": 2}, 300)],
    ids=["2,000 updates", "slices"],
)
def test_nothing_stays_in_memory(tmp_path, options, updates):
    alive = Alive({100, updates})
    model = perceptron(lambda: nn.BatchNorm1d(6), dropout=0.1)
    run = {"max_steps": updates, "logging_steps": 10_000, "optim": "adamw_torch"}
    trained(model, points(32), tmp_path, callbacks=[alive], **run, **options)
    (tensors, objects), (tensors_later, objects_later) = alive.counts
    assert tensors_later <= tensors
    assert objects_later <= objects + 100


def test_window_keeps_no_batch_between_updates(tmp_path):
    """The window of an update that is over holds none of its inputs."""
    trainer = trainer_of(bert(), sentences(16), tmp_path, max_steps=1, gradient_accumulation_steps=2, sam_rho=0.1)
    trainer.train()
    held = [referrer for referrer in vars(trainer._sam_window).values() if isinstance(referrer, list)]
    assert held and not any(held)


def test_a_loop_of_the_users_own_keeps_no_inputs(tmp_path):
    """It calls `training_step` and never fetches batches through the trainer."""
    trainer = trainer_of(perceptron(), points(32), tmp_path, sam_rho=0.1, gradient_accumulation_steps=1)
    trainer.current_gradient_accumulation_steps = 1
    kept = []
    for start in range(0, 32, 4):
        inputs = {key: torch.stack([e[key] for e in points(32)[start : start + 4]]) for key in ("x", "labels")}
        trainer.training_step(trainer.model, inputs)
        kept.append(weakref.ref(inputs["x"]))
    del inputs
    gc.collect()
    assert sum(reference() is not None for reference in kept) <= 1


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("options", [{}, {"sam_ascent_steps": 2}, {"sam_method": "none"}], ids=str)
def test_operations_are_estimated_once_a_micro_batch(tmp_path, accumulation, options):
    """Trainer's estimate walks the model: two walks an update would be most of what SAM adds to a deep model."""
    walks = []
    model = bert(dtype=torch.float32)
    own = model.num_parameters
    model.num_parameters = lambda *args, **kwargs: walks.append(kwargs) or own(*args, **kwargs)
    trainer = trained(model, sentences(16), tmp_path, max_steps=2, gradient_accumulation_steps=accumulation, **options)
    assert walks.count({"exclude_embeddings": True}) == 2 * accumulation
    passes = 1 if "sam_method" in options else 1 + options.get("sam_ascent_steps", 1)
    assert trainer.state.total_flos == passes * 2 * accumulation * 6 * 4 * LENGTH * own(exclude_embeddings=True)


class Operations(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.number += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("order", [2.0, 3.0, torch.inf])
def test_a_norm_over_many_tensors_is_few_operations(order):
    """And it is the number, bit for bit, that powers taken tensor by tensor give."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(7, generator=generator) for _ in range(500)]
    with Operations() as operations:
        norm = global_norm(tensors, order)
    assert operations.number < 20
    norms = torch._foreach_norm(tensors, order)
    by_tensor = torch.stack([n if order == torch.inf else n.pow(order) for n in norms])
    expected = by_tensor.max() if order == torch.inf else by_tensor.sum().pow(1 / order)
    if order == 3.0:  # a vectorised power may differ in the last place from one of a single number
        torch.testing.assert_close(norm, expected, rtol=1e-6, atol=0)
    else:
        assert torch.equal(norm, expected)

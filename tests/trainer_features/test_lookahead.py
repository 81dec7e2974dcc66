"""Optimizers around optimizers, which do not run torch's hooks: what follows the steps follows the whole step."""

from __future__ import annotations

import itertools
import shutil
from collections import defaultdict

import pytest
import torch
from by_hand import training_logs
from tiny import (
    Watch,
    assert_same,
    bert,
    flat,
    perceptron,
    points,
    relative_difference,
    sentences,
    snapshot,
    trainer_of,
)
from torch import nn
from transformers import Trainer, TrainerCallback

from sam_hf import SAMTrainer
from sam_hf.arguments.schedules import AUTO_SHARE

UPDATES = 8


class Lookahead(torch.optim.Optimizer):
    """The usual recipe. It does not call `Optimizer.__init__`."""

    def __init__(self, inner, k=3, alpha=0.5):
        self.optimizer, self.k, self.alpha, self.count = inner, k, alpha, 0
        self.param_groups, self.defaults, self.state = inner.param_groups, inner.defaults, defaultdict(dict)
        self.slow = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        self.count += 1
        if self.count % self.k == 0:
            for parameter, slow in self.slow.items():
                parameter.copy_(slow.lerp_(parameter, self.alpha))
        return loss

    def zero_grad(self, set_to_none=True):
        self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state):
        self.optimizer.load_state_dict(state)


class Twice(torch.optim.AdamW):
    """torch runs the hooks of the class and of its parent: both have a `step` of their own."""

    def step(self, closure=None):
        return super().step(closure)


def of_timm(inner):
    # The first interpolation only copies the weights, the second moves them
    return pytest.importorskip("timm.optim").Lookahead(inner, k=2)


def of_pytorch_optimizer(inner):
    return pytest.importorskip("pytorch_optimizer").Lookahead(inner, k=2)


WRAPPERS = {
    "recipe": Lookahead,
    "timm": of_timm,
    "pytorch_optimizer": of_pytorch_optimizer,
    "two steps inside one": lambda inner: Twice(inner.param_groups, lr=0.05),
}


def run(wrap, output_dir, data=None, make_model=perceptron, callbacks=(), scaler=None, train=True, **changes):
    model = make_model()
    optimizer = wrap(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05))
    settings = {"max_steps": UPDATES, "lr_scheduler_type": "linear"} | changes
    args = trainer_of(perceptron(), points(8), output_dir, **settings).args
    trainer = SAMTrainer(
        model=model,
        args=args,
        train_dataset=data or points(32),
        optimizers=(optimizer, None),
        callbacks=list(callbacks),
    )
    trainer.accelerator.scaler = scaler
    if train:
        trainer.train()
    return model, trainer


class Steps:
    """The length of each step of a run, and the weights before and after it."""

    def __init__(self):
        self.lengths, self.before, self.after = [], [], []

    def __call__(self, event, model):
        if event == "on_step_begin":
            self.before.append(flat(model))
        elif event == "on_step_end":
            self.after.append(flat(model))
            self.lengths.append(float((self.after[-1] - self.before[-1]).norm()))


@pytest.mark.parametrize("method", ["sam", "gsam", "wsam", "fsam"])
@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_the_radius_is_a_share_of_the_whole_step(tmp_path, wrap, method):
    steps = Steps()
    _, trainer = run(wrap, tmp_path, callbacks=[Watch(steps)], sam_method=method, sam_rho_schedule="auto")
    expected = [0.0, *(AUTO_SHARE * length for length in steps.lengths[:-1])]
    assert [entry["sam_rho"] for entry in training_logs(trainer)] == pytest.approx(expected, rel=1e-9)
    assert min(expected[1:]) > 0


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_momentum_sam_applies_the_radius_that_it_logs(tmp_path, wrap):
    class Recording(SAMTrainer):
        at = ()

        def compute_loss(self, model, *args, **kwargs):
            self.at += (flat(model),)
            return super().compute_loss(model, *args, **kwargs)

    steps = Steps()
    _, trainer = run(wrap, tmp_path, callbacks=[Watch(steps)], train=False, sam_method="msam", sam_rho=0.3)
    trainer.__class__ = Recording
    trainer.train()
    lengths = [float((seen - before).norm()) for seen, before in zip(trainer.at, steps.before, strict=True)]
    assert [entry["sam_rho"] for entry in training_logs(trainer)] == pytest.approx(lengths, rel=1e-9)
    assert lengths == pytest.approx([0.0] + [0.3] * (UPDATES - 1), rel=1e-9)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_adapters_are_balanced_once_per_step(tmp_path, wrap):
    """Against a loop that multiplies the pairs by hand just before the same optimizer steps."""
    peft = pytest.importorskip("peft")

    def adapted():
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False)
        return peft.get_peft_model(perceptron(), config).double()

    class Balance(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, optimizer=None, **kwargs):
            rate, modules = optimizer.param_groups[0]["lr"], list(model.modules())
            for module in modules:
                if hasattr(module, "lora_A") and hasattr(module.lora_A, "default"):
                    a, b = module.lora_A.default.weight, module.lora_B.default.weight
                    sign = 1 if a.grad.norm() >= b.grad.norm() else -1
                    with torch.no_grad():
                        a.mul_(1 + sign * 0.2 * rate)
                        b.mul_(1 - sign * 0.2 * rate)

    options = {"make_model": adapted, "lr_scheduler_type": "constant"}
    kwargs = {"schedule": "constant"}
    model, _ = run(wrap, tmp_path, sam_method="nbar", sam_method_kwargs=kwargs, **options)
    expected, _ = run(wrap, tmp_path, sam_method="none", callbacks=[Balance()], **options)
    plain, _ = run(wrap, tmp_path, sam_method="none", **options)
    assert relative_difference(flat(model), flat(expected)) < 1e-12
    assert relative_difference(flat(plain), flat(expected)) > 1e-4


class Overflow(TrainerCallback):
    """An infinite gradient in the third update, after all passes."""

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        if state.global_step == 2:
            next(model.parameters()).grad.fill_(torch.inf)


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))
def test_a_step_that_the_scaler_skips_is_no_step(tmp_path, wrap):
    steps, scaler = Steps(), torch.amp.GradScaler("cpu", init_scale=8.0)
    options = {"sam_rho_schedule": "auto", "callbacks": [Overflow(), Watch(steps)], "scaler": scaler}
    _, trainer = run(wrap, tmp_path, points(32, torch.float32), lambda: perceptron().float(), **options)
    assert steps.lengths[2] == 0.0 and scaler.get_scale() == 4.0
    lasting = list(itertools.accumulate(steps.lengths, lambda last, length: length or last))
    expected = [0.0, *(AUTO_SHARE * length for length in lasting[:-1])]
    assert [entry["sam_rho"] for entry in training_logs(trainer)] == pytest.approx(expected, rel=1e-4)


def test_resuming_continues_bit_for_bit(tmp_path):
    """timm's keeps its slow weights in the checkpoint."""
    options = {"save_strategy": "steps", "save_steps": 1, "sam_rho_schedule": "auto"}
    make = {"data": sentences(32), "make_model": lambda: bert(dropout=0.2)}
    whole, trainer = run(of_timm, tmp_path / "whole", **make, **options)
    for step in (1, 3, 6):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        model, again = run(of_timm, folder, train=False, **make, **options)
        again.train(resume_from_checkpoint=True)
        assert_same(snapshot(model), snapshot(whole))
        assert again.state.log_history[:-1] == trainer.state.log_history[:-1]


@pytest.mark.parametrize("scaled", [False, True])
def test_the_optimizer_gets_its_own_step_back(tmp_path, scaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    _, trainer = run(Lookahead, tmp_path, scaler=scaler, train=False, sam_rho_schedule="auto")
    optimizer = trainer.optimizer
    seen = []
    trainer.add_callback(Watch(lambda event, model: seen.append(optimizer.step.__name__)))
    trainer.train()
    assert set(seen) == {"step"}  # wrapped under the same name
    # A scheduler of torch wraps `step` as well, and its own stays
    assert "step_hooks" not in optimizer.step.__func__.__code__.co_filename
    trainer.train()  # hooks are registered again
    assert all(entry["sam_rho"] > 0 for entry in training_logs(trainer)[1:])


class Unhooked(TrainerCallback):
    """Takes the wrapped `step` off the optimizer again."""

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, **kwargs):
        vars(optimizer.optimizer).pop("step", None)


@pytest.mark.parametrize("options", [{"sam_rho_schedule": "auto"}, {"sam_method": "msam"}], ids=str)
def test_steps_that_are_not_seen_are_refused(tmp_path, options):
    with pytest.raises(ValueError, match=r"AdamW was stepped, but not through its method `step`"):
        run(lambda inner: inner, tmp_path, callbacks=[Unhooked()], **options)
    run(lambda inner: inner, tmp_path, callbacks=[Unhooked()], sam_rho=0.1)  # follows no step


def test_a_scheduler_that_is_made_during_the_run(tmp_path):
    """torch's schedulers wrap `step`, and expect a method."""

    class Late(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer=None, **kwargs):
            if state.global_step == 2:
                torch.optim.lr_scheduler.StepLR(optimizer.optimizer, 100)

    weights = []
    for callbacks in ((), [Late()]):
        model, _ = run(Lookahead, tmp_path, callbacks=callbacks, lr_scheduler_type="constant", sam_rho_schedule="auto")
        weights.append(flat(model))
    assert torch.equal(*weights)


def test_plain_training_is_left_alone(tmp_path):
    plain = perceptron()
    optimizer = Lookahead(torch.optim.AdamW(plain.parameters(), lr=0.05))
    args = trainer_of(perceptron(), points(8), tmp_path, max_steps=UPDATES, lr_scheduler_type="linear").args
    Trainer(model=plain, args=args, train_dataset=points(32), optimizers=(optimizer, None)).train()
    model, _ = run(Lookahead, tmp_path, sam_method="none")
    assert torch.equal(flat(model), flat(plain))


class MasterWeights(torch.optim.SGD):
    """An optimizer that steps copies of the parameters, as mixed-precision optimizers do."""

    def __init__(self, parameters):
        self.of_model = list(parameters)
        super().__init__([nn.Parameter(p.detach().clone()) for p in self.of_model], lr=0.05)

    def step(self, closure=None):
        for group in self.param_groups:
            for master, parameter in zip(group["params"], self.of_model, strict=True):
                master.grad = parameter.grad
        super().step(closure)
        with torch.no_grad():
            for group in self.param_groups:
                for master, parameter in zip(group["params"], self.of_model, strict=True):
                    parameter.copy_(master)


def offloading(parameters):
    """An optimizer that takes every gradient away as soon as it is there."""
    optimizer = torch.optim.SGD(list(parameters), lr=0.05)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    return optimizer


@pytest.mark.parametrize("options", [{"sam_rho": 0.1}, {"sam_rho": 0.1, "sam_method": "gsam"}], ids=str)
@pytest.mark.parametrize("make", [MasterWeights, offloading])
def test_gradients_that_are_elsewhere_are_refused(tmp_path, make, options):
    model = perceptron()
    args = trainer_of(perceptron(), points(8), tmp_path, **options).args
    trainer = SAMTrainer(model=model, args=args, train_dataset=points(8), optimizers=(make(model.parameters()), None))
    with pytest.raises(ValueError, match="left no gradient in the parameters that the optimizer steps"):
        trainer.train()

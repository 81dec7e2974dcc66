"""Six updates of pytorch_optimizer's SAM classes in float64 equal SAMTrainer's, or differ as on docs/comparison.md."""

from __future__ import annotations

import pytest
import torch
from tiny import flat, perceptron, points, relative_difference, trainer_of, windows_of

from sam_hf.methods import METHODS, LookSAM
from sam_hf.update.model_structure import ModelStructure

theirs = pytest.importorskip("pytorch_optimizer.optimizer.sam")
proportion = pytest.importorskip("pytorch_optimizer.lr_scheduler.proportion")

BATCH, UPDATES, RHO = 4, 6, 0.2
BASES = {
    "momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, {"optim": "sgd", "optim_args": "momentum=0.9"}),
    "adamw": (torch.optim.AdamW, {"lr": 0.02}, {"optim": "adamw_torch", "weight_decay": 0.1}),
}

SQUARED_NORM = theirs.get_global_gradient_norm


def exact_squared_norm(groups, device=None, *, weight_adaptive=False):
    """Compute what pytorch_optimizer's function does, without its conversion to float32."""
    total = torch.zeros(1, dtype=torch.float64)
    for group in groups:
        scaled = weight_adaptive and group.get("adaptive", False)
        for p in group["params"]:
            if p.grad is not None:
                total += (p.grad * p.abs() if scaled else p.grad).square().sum()
    return total


@pytest.fixture(autouse=True)
def exact_norm(monkeypatch):
    monkeypatch.setattr(theirs, "get_global_gradient_norm", exact_squared_norm)


def our_run(output_dir, base, method, **changes):
    _, settings, ours = BASES[base]
    trainer = trainer_of(
        perceptron(),
        points(BATCH * UPDATES),
        output_dir,
        sam_method=method,
        per_device_train_batch_size=BATCH,
        max_steps=UPDATES,
        **({"sam_rho": RHO, "learning_rate": settings["lr"]} | ours | changes),
    )
    trainer.train()
    assert trainer.state.global_step == UPDATES
    return flat(trainer.model)


class TheirRun:
    """Trains over the same batches with the loop of pytorch_optimizer's documentation."""

    def __init__(self, base, make):
        self.passes = 0
        self.model = perceptron()
        self.start = flat(self.model)
        optimizer_class, settings, _ = BASES[base]
        # Trainer's groups: no weight decay for biases
        decayed = [p for name, p in self.model.named_parameters() if "bias" not in name]
        biases = [p for name, p in self.model.named_parameters() if "bias" in name]
        decay = 0.1 if optimizer_class is torch.optim.AdamW else 0.0
        groups = [{"params": decayed, "weight_decay": decay}, {"params": biases, "weight_decay": 0.0}]
        self.optimizer = make(self.model, groups, optimizer_class, settings)

    def train(self, after_update=lambda: None):
        self.model.train()
        self.model.register_forward_hook(self._count)
        for ((*examples,),) in windows_of(points(BATCH * UPDATES), BATCH, 1, UPDATES):
            batch = {key: torch.stack([example[key] for example in examples]) for key in examples[0]}
            self._update(batch)
            after_update()
        return flat(self.model)

    def _count(self, *_):
        self.passes += 1

    def _update(self, batch):
        def closure():
            self.optimizer.zero_grad()
            self.model(**batch)["loss"].backward()

        if isinstance(self.optimizer, theirs.GSAM):
            self.optimizer.set_closure(cross_entropy, batch["x"], batch["labels"])
            self.optimizer.step()
            return
        if not isinstance(self.optimizer, theirs.WSAM):  # WSAM makes the first pass itself
            closure()
        self.optimizer.step(closure)


def cross_entropy(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs["logits"], labels)


def sam_like(name, **options):
    def make(model, groups, optimizer_class, settings):
        return getattr(theirs, name)(groups, optimizer_class, rho=RHO, **options, **settings)

    return make


def wsam(**options):
    def make(model, groups, optimizer_class, settings):
        return theirs.WSAM(model, groups, optimizer_class, rho=RHO, **options, **settings)

    return make


AGREE = {
    "sam": (sam_like("SAM"), {}),
    "wsam": (wsam(gamma=0.8, decouple=False), {"sam_method_kwargs": {"gamma": 0.8}}),
    "wsam decoupled": (wsam(gamma=0.8), {"sam_method_kwargs": {"gamma": 0.8, "decouple": True}}),
    "fsam": (sam_like("FriendlySAM", sigma=0.7), {"sam_method_kwargs": {"sigma": 0.7}}),
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("case", AGREE)
def test_agrees(tmp_path, case, base):
    make, options = AGREE[case]
    their_run = TheirRun(base, make)
    expected = their_run.train()
    assert relative_difference(expected, their_run.start) > 1e-2
    assert relative_difference(our_run(tmp_path, base, case.partition(" ")[0], **options), expected) < 1e-9


@pytest.mark.parametrize("base", BASES)
def test_gsam_agrees_with_rho_after_the_learning_rate(tmp_path, base):
    lr = BASES[base][1]["lr"]

    def make(model, groups, optimizer_class, settings):
        inner = optimizer_class(groups, **settings)
        schedule = torch.optim.lr_scheduler.LambdaLR(inner, lambda update: 1 - update / UPDATES)
        rho = proportion.ProportionScheduler(schedule, max_lr=lr, min_lr=0.0, max_value=RHO, min_value=0.05)
        return theirs.GSAM(model=model, params=inner.param_groups, base_optimizer=inner, rho_scheduler=rho, alpha=0.7)

    their_run = TheirRun(base, make)

    def after_update():
        their_run.optimizer.rho_scheduler.lr_scheduler.step()
        their_run.optimizer.update_rho_t()

    expected = their_run.train(after_update)
    options = {"sam_rho_schedule": "lr", "sam_rho_min": 0.05, "sam_method_kwargs": {"alpha": 0.7}}
    ours = our_run(tmp_path, base, "gsam", lr_scheduler_type="linear", **options)
    assert relative_difference(ours, expected) < 1e-9


def test_norms_in_float32_are_the_only_other_difference(tmp_path, monkeypatch):
    monkeypatch.setattr(theirs, "get_global_gradient_norm", SQUARED_NORM)
    expected = TheirRun("momentum", sam_like("SAM")).train()
    assert 1e-12 < relative_difference(our_run(tmp_path, "momentum", "sam"), expected) < 1e-6


@pytest.mark.parametrize("base", BASES)
def test_adaptive_sam_has_no_eta_and_scales_biases(tmp_path, base, monkeypatch):
    expected = TheirRun(base, sam_like("SAM", adaptive=True)).train()
    without_eta = {"sam_method_kwargs": {"eta": 0.0}}
    assert relative_difference(our_run(tmp_path, base, "asam"), expected) > 1e-4
    assert relative_difference(our_run(tmp_path, base, "asam", **without_eta), expected) > 1e-4
    monkeypatch.setattr(ModelStructure, "own_name", lambda *_: "weight")
    assert relative_difference(our_run(tmp_path, base, "asam"), expected) > 1e-4
    assert relative_difference(our_run(tmp_path, base, "asam", **without_eta), expected) < 1e-9


class LayerwiseLookSAM(LookSAM):
    """LookSAM with pytorch_optimizer's two changes: norms per parameter, and 1e-8 added to the norm of s_v."""

    def combine(self, g, s, products, at):
        parts = self.tensors.setdefault("part", {})
        for parameter, gradient, descent in zip(at.parameters, g, s, strict=True):
            parts[parameter] = descent - (descent * gradient).sum() / gradient.square().sum() * gradient

    def reuse(self, grads, at):
        for parameter, grad in zip(at.parameters, grads, strict=True):
            part = self.tensors["part"][parameter]
            grad += self.alpha * grad.norm() / (part.norm() + 1e-8) * part


@pytest.mark.parametrize("base", BASES)
def test_looksam_is_layerwise_and_pays_two_passes_on_every_update(tmp_path, base, monkeypatch):
    their_run = TheirRun(base, sam_like("LookSAM", k=2))
    expected = their_run.train()
    assert their_run.passes == 2 * UPDATES
    assert relative_difference(our_run(tmp_path, base, "looksam", sam_interval=2), expected) > 1e-4
    monkeypatch.setitem(METHODS, "looksam", LayerwiseLookSAM)
    assert relative_difference(our_run(tmp_path, base, "looksam", sam_interval=2), expected) < 1e-9


def unmoving(name):
    """Return how far an optimizer moves the weights with a learning rate of 0."""

    def make(model, groups, optimizer_class, settings):
        if name == "BSAM":
            return theirs.BSAM(groups, num_data=10**9, lr=0.0, rho=RHO)
        if name == "WSAM":
            return theirs.WSAM(model, groups, optimizer_class, rho=RHO, lr=0.0)
        return getattr(theirs, name)(groups, optimizer_class, rho=RHO, lr=0.0)

    their_run = TheirRun("momentum", make)
    return relative_difference(their_run.train(), their_run.start)


def test_bsam_never_takes_its_perturbation_back():
    assert unmoving("BSAM") > 1e-2


def test_wsam_takes_its_perturbation_back_by_subtraction(tmp_path):
    assert unmoving("SAM") == 0
    assert 0 < unmoving("WSAM") < 1e-14
    assert torch.equal(our_run(tmp_path, "momentum", "wsam", learning_rate=0.0), flat(perceptron()))

"""In one line of the log, L(w + ε) − L(w) is the difference of the two losses: the means are over the same updates."""

from __future__ import annotations

import pytest
import torch
from by_hand import training_logs
from tiny import Perceptron, flat, perceptron, points, trained, trainer_of
from transformers import TrainerCallback

from sam_hf import SAMTrainer

AUTO = {"sam_rho_schedule": "auto"}
RUNS = {
    "auto": AUTO,
    "auto, accumulation": AUTO | {"gradient_accumulation_steps": 2},
    "auto, slices": AUTO | {"sam_m": 2},
    "gsam": AUTO | {"sam_method": "gsam"},
    "looksam": AUTO | {"sam_method": "looksam", "sam_interval": 3},
    "interval": {"sam_rho": 0.3, "sam_interval": 2, "gradient_accumulation_steps": 2},
    "late start": {"sam_rho": 0.3, "sam_start_ratio": 0.4},
    "warm-up": {"sam_rho": 0.3, "sam_rho_schedule": "warmup", "sam_rho_warmup_ratio": 0.5},
    "down to 0": {"sam_rho": 0.3, "sam_rho_schedule": "linear"},
    "groups": {"sam_rho": 0.3, "sam_m": 4, "gradient_accumulation_steps": 2, "sam_ascent_steps": 2},
}


@pytest.mark.parametrize("logging_steps", [4, 12])
@pytest.mark.parametrize("name", RUNS)
def test_the_difference_of_the_losses_is_the_sharpness(tmp_path, name, logging_steps):
    run = {"max_steps": 12, "logging_steps": logging_steps, "learning_rate": 0.5} | RUNS[name]
    trainer = trained(perceptron(), points(32), tmp_path, **run)
    entries = training_logs(trainer)
    assert len(entries) == 12 // logging_steps
    for entry in entries:
        assert entry["sam_perturbed_loss"] - entry["loss"] == pytest.approx(entry["sam_sharpness"], abs=1e-6)
    assert max(abs(entry["sam_sharpness"]) for entry in entries) > 1e-3


@pytest.mark.parametrize("name", RUNS)
def test_a_plain_update_counts_with_the_radius_0(tmp_path, name):
    """The mean of a log over several updates is that of their own logs."""
    run = {"max_steps": 12, "learning_rate": 0.5} | RUNS[name]
    single, together = (
        training_logs(trained(perceptron(), points(32), tmp_path, logging_steps=steps, **run)) for steps in (1, 12)
    )
    for metric in ("loss", "sam_rho", "sam_perturbed_loss", "sam_sharpness"):
        mean = sum(entry[metric] for entry in single) / 12
        assert together[0][metric] == pytest.approx(mean, rel=1e-6)
    plain = [entry for entry in single if entry["sam_rho"] == 0]
    assert plain or name in ("groups",)
    for entry in plain:
        assert entry["sam_sharpness"] == 0
        assert entry["sam_perturbed_loss"] == pytest.approx(entry["loss"], rel=1e-6)
        assert "sam_ascent_grad_norm" not in entry


@pytest.mark.parametrize("in_loss", [False, True])
def test_updates_whose_ascent_is_not_finite(tmp_path, in_loss):
    """If only the gradient is not finite, the update is plain. Trainer itself leaves out a loss that is not finite."""

    class Faulty(SAMTrainer):
        passes = 0

        def training_step(self, *args, **kwargs):
            self.passes = 0
            return super().training_step(*args, **kwargs)

        def compute_loss(self, model, inputs, *args, **kwargs):
            self.passes += 1
            loss = super().compute_loss(model, inputs, *args, **kwargs)
            if self.state.global_step % 3 == 2 and self.passes == 1:
                if in_loss:
                    return loss * torch.nan
                loss.register_hook(lambda gradient: gradient * torch.nan)
            return loss

    run = {"max_steps": 6, "logging_steps": 1, "sam_rho": 0.3}
    for entry in training_logs(trained(perceptron(), points(32), tmp_path, trainer_class=Faulty, **run)):
        if "sam_sharpness" in entry:
            assert entry["sam_perturbed_loss"] - entry["loss"] == pytest.approx(entry["sam_sharpness"], abs=1e-6)
        assert ("sam_sharpness" in entry) == ("sam_perturbed_loss" in entry)


def test_two_losses_of_different_examples_have_no_difference(tmp_path):
    """The update without a step length before it is plain, and does not make one appear."""
    for entry in training_logs(trained(perceptron(), points(32), tmp_path, sam_ascent_fraction=0.5, **AUTO)):
        assert "sam_sharpness" not in entry
        assert {"sam_perturbed_loss", "sam_rho"} <= entry.keys()


@pytest.mark.parametrize("options", [{"sam_method": "none"}, {"sam_rho": 0.0}], ids=str)
def test_a_run_without_sam_logs_nothing_of_it(tmp_path, options):
    entries = training_logs(trained(perceptron(), points(32), tmp_path, **options))
    assert not [key for entry in entries for key in entry if key.startswith("sam_")]


class OutOfMemory(TrainerCallback):
    """The batch size that was asked for fits until the fourth update."""

    def on_step_begin(self, args, state, control, **kwargs):
        self.step = state.global_step


def test_metrics_of_an_attempt_that_ran_out_of_memory_are_dropped(tmp_path):
    callback = OutOfMemory()

    class Large(Perceptron):
        def forward(self, x, labels=None):
            if self.training and len(x) > 4 and callback.step == 3:
                raise RuntimeError("CUDA out of memory.")
            return super().forward(x, labels)

    torch.manual_seed(0)
    run = {"auto_find_batch_size": True, "per_device_train_batch_size": 8, "logging_steps": 6, "sam_rho": 0.3}
    trainer = trainer_of(Large().double(), points(32), tmp_path, callbacks=[callback], **run)
    before = flat(trainer.model)
    trainer.train()
    assert not torch.equal(flat(trainer.model), before)
    (entry,) = training_logs(trainer)
    assert entry["sam_perturbed_loss"] - entry["loss"] == pytest.approx(entry["sam_sharpness"], abs=1e-6)

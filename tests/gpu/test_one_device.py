"""On a CUDA device: fp16, bf16, generators, peak memory, waits for the device, fused optimizers, torch.compile."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from tiny import Watch, assert_same, bert, sentences, snapshot, trained, trainer_of
from transformers import Trainer

import sam_hf
from sam_hf.methods import METHODS

pytestmark = pytest.mark.gpu

RUN = {
    "use_cpu": False,
    "sam_rho": 0.1,
    "optim": "adamw_torch",
    "learning_rate": 1e-3,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 2,
}
KEYS = ("loss", "sam_perturbed_loss", "sam_sharpness", "sam_ascent_grad_norm")


def single(dropout=0.0, **config):
    return bert(dropout=dropout, dtype=torch.float32, **config)


def updates(trainer):
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def restoring_watch():
    begin = {}

    def check(event, model):
        if event == "on_step_begin":
            begin.update(snapshot(model))
        elif event == "on_pre_optimizer_step":
            assert_same(snapshot(model), begin)

    return Watch(check)


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("m", [None, 4, 2])
def test_mixed_precision_follows_float32(tmp_path, precision, m):
    expected = trained(single(), sentences(48), tmp_path, **RUN, sam_m=m)
    # At this scale nothing overflows, so no update is skipped
    trainer = trainer_of(
        single(), sentences(48), tmp_path, callbacks=[restoring_watch()], **{precision: True}, **RUN, sam_m=m
    )
    assert (trainer.accelerator.scaler is not None) == (precision == "fp16")
    if precision == "fp16":
        trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=1024.0)
    trainer.train()
    for entry, reference in zip(updates(trainer), updates(expected), strict=True):
        assert entry["sam_skipped"] == 0.0
        # None of them contains the loss scale
        for key in KEYS:
            assert entry[key] == pytest.approx(reference[key], rel=0.1, abs=0.02)


def test_overflow_skips_perturbation_and_step(tmp_path):
    seen = []

    def check(event, model):
        if event in ("on_step_begin", "on_step_end"):
            seen.append(snapshot(model))

    trainer = trainer_of(single(), sentences(48), tmp_path, callbacks=[Watch(check)], fp16=True, max_steps=4, **RUN)
    trainer.accelerator.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)
    trainer.train()
    assert updates(trainer)[0]["sam_skipped"] == 1.0
    assert_same(seen[1], seen[0])
    assert all(tensor.isfinite().all() for tensor in seen[-1].values())


def test_weights_in_bf16_with_stochastic_rounding_and_a_fused_optimizer(tmp_path):
    model = bert(dropout=0.1, dtype=torch.bfloat16)
    options = RUN | {"optim": "adamw_torch_fused", "sam_rho": 0.01}
    trainer = trained(
        model, sentences(48), tmp_path, callbacks=[restoring_watch()], sam_stochastic_rounding=True, **options
    )
    ratios = [entry["sam_perturbation_ratio"] for entry in updates(trainer)]
    assert sum(ratios) / len(ratios) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "sgd"])
def test_fused_and_foreach_optimizers_make_the_same_step(tmp_path, optim):
    results = []
    for args in ("foreach=False", "fused=True"):
        model = single()
        trained(
            model, sentences(48), tmp_path, **(RUN | {"optim": optim, "optim_args": args if optim == "sgd" else None})
        )
        results.append(torch.cat([p.flatten() for p in model.parameters()]))
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-6)


def test_both_passes_draw_the_devices_own_random_numbers_again(tmp_path):
    """With ρ → 0, training with dropout equals that of plain Trainer."""
    plain = trained(single(dropout=0.3), sentences(48), tmp_path, trainer_class=Trainer, **RUN)
    sam = trained(single(dropout=0.3), sentences(48), tmp_path, **(RUN | {"sam_rho": 1e-12}))
    for entry, reference in zip(updates(sam), updates(plain), strict=True):
        assert entry["loss"] == pytest.approx(reference["loss"], rel=1e-5)
        assert entry["sam_sharpness"] == pytest.approx(0.0, abs=1e-5)


def peak(output_dir, **options):
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    model = single(hidden_size=512, num_hidden_layers=6, num_attention_heads=8, intermediate_size=2048)
    trained(model, sentences(16), output_dir, **(RUN | {"max_steps": 2, "gradient_accumulation_steps": 1} | options))
    return torch.cuda.max_memory_allocated() - before, sum(p.numel() * p.element_size() for p in model.parameters())


def test_one_copy_of_the_trained_weights_at_peak(tmp_path):
    plain, weights = peak(tmp_path, sam_method="none")
    sam, _ = peak(tmp_path)
    assert sam - plain <= 1.2 * weights


AXES = [{}, {"sam_ascent_steps": 2}, {"sam_m": 4}, {"sam_p": 3.0}, {"fp16": True}, {"sam_target_modules": "norm"}]
AXES += [{"sam_ascent_fraction": 0.5}, {"sam_interval": 2}, {"sam_rho_schedule": "linear"}]
AXES += [{"sam_rho_schedule": "auto", "sam_rho": None}]
OTHER_METHODS = [{"sam_method": method} for method in METHODS if method not in ("sam", "nbar")]


@pytest.mark.parametrize(
    "options", [*AXES, *OTHER_METHODS, {"sam_method": "wsam", "sam_method_kwargs": {"decouple": True}}], ids=str
)
def test_no_update_waits_for_the_device(tmp_path, options):
    trained(single(), sentences(48), tmp_path, **RUN)  # this does what happens only once
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trained(single(), sentences(48), tmp_path, logging_steps=100, **(RUN | options))
        finally:
            torch.cuda.set_sync_debug_mode("default")
    package = Path(sam_hf.__file__).parent
    waits = [w for w in caught if "synchroniz" in str(w.message)]
    assert waits, "Trainer itself waits, so there must be warnings"
    ours = Counter((Path(w.filename).name, w.lineno) for w in waits if package in Path(w.filename).parents)
    # Slices check once per run whether the loss is a mean
    assert set(ours.values()) <= ({1} if "sam_ascent_fraction" in options else set())


@pytest.mark.parametrize("options", [{}, {"bf16": True}, {"sam_ascent_steps": 2}], ids=str)
def test_compiled_model_is_not_compiled_again(tmp_path, options):
    class Counting(Watch):
        compiled = ()

        def __init__(self):
            super().__init__(self.check)

        def check(self, event, model):
            if event == "on_step_end":
                self.compiled += (torch._dynamo.utils.counters["stats"]["unique_graphs"],)

    # AdamW would amplify the rounding noise of biases whose gradient is zero
    run = RUN | {"optim": "sgd", "learning_rate": 0.05} | options
    torch._dynamo.reset()
    counting, eager, compiled = Counting(), single(), single()
    trained(eager, sentences(48), tmp_path, **run)
    trained(compiled, sentences(48), tmp_path, callbacks=[counting], torch_compile=True, **run)
    assert counting.compiled[0] > 0
    assert len(set(counting.compiled)) == 1
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if "bf16" in options else {"rtol": 1e-3, "atol": 1e-4}
    for (name, a), b in zip(eager.named_parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, msg=lambda text, name=name: f"{name}: {text}", **tolerance)

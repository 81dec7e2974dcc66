"""SAM in TRL with PEFT: adapters that TRL creates, including the reference of DPO, and their metrics."""

from __future__ import annotations

import copy

import pytest
import torch
from causal import llama, logged, preferences, run, texts, with_sam
from tiny import snapshot

trl = pytest.importorskip("trl")
peft = pytest.importorskip("peft")

CASES = {"sft": ((trl.SFTTrainer, trl.SFTConfig), texts), "dpo": ((trl.DPOTrainer, trl.DPOConfig), preferences)}


def adapters():
    return peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)


def trained(classes, data, output_dir, **options):
    """Train, and return the trainer and the model's tensors before training. The adapters are the same every time."""
    at_start = []

    class Starting(classes[0]):
        def train(self, *args, **kwargs):
            at_start.append(snapshot(self.model))
            return super().train(*args, **kwargs)

    torch.manual_seed(3)
    trainer = run((Starting, classes[1]), llama(), data, output_dir, peft_config=adapters(), **options)
    return trainer, at_start[0]


@pytest.mark.parametrize("case", CASES)
def test_plain_trainer_at_vanishing_rho(tmp_path, case):
    classes, data = CASES[case]
    options = {"gradient_accumulation_steps": 2, "learning_rate": 0.5}
    plain, _ = trained(classes, data(16), tmp_path, **options)
    sam, _ = trained(with_sam(*classes), data(16), tmp_path, sam_rho=1e-12, **options)
    names = ("loss", "num_tokens")
    torch.testing.assert_close(torch.tensor(logged(sam, *names)), torch.tensor(logged(plain, *names)))
    torch.testing.assert_close(snapshot(sam.model), snapshot(plain.model), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_only_adapters_are_perturbed_and_moved(tmp_path, case):
    classes, data = CASES[case]
    perturbed = set()
    trainer_class, arguments_class = with_sam(*classes)

    class Watching(trainer_class):
        def compute_loss(self, model, *args, **kwargs):
            now = snapshot(model)
            if not hasattr(self, "first"):
                self.first = copy.copy(now)
            perturbed.update(key for key in now if not torch.equal(now[key], self.first[key]))
            return super().compute_loss(model, *args, **kwargs)

    trainer, before = trained((Watching, arguments_class), data(8), tmp_path, sam_rho=0.3, max_steps=2)
    trainable = {key for key, p in trainer.model.named_parameters() if p.requires_grad}
    after = snapshot(trainer.model)
    assert trainable and all("lora" in key for key in trainable)
    assert {key for key in after if not torch.equal(after[key], before[key])} == perturbed == trainable
    assert logged(trainer, "sam_sharpness")[0][0] > 1e-6

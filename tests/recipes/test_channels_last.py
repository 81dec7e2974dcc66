"""
Weights in the channels-last layout train as in the usual one, because all tensors that are combined with them have the
same layout in memory.
"""

from __future__ import annotations

import pytest
import torch
from tiny import LABELS, flat, trained, trainer_of
from torch import nn

from sam_hf.methods import METHODS

CONVOLUTIONAL = [name for name in METHODS if name != "nbar"]  # which perturbs only adapters
AXES = [
    {"sam_method": "looksam", "sam_interval": 2},
    {"gradient_accumulation_steps": 2},
    {"sam_m": 2, "sam_method": "gsam"},
    {"sam_m": 2, "gradient_accumulation_steps": 2},
    {"sam_p": float("inf")},
    {"sam_p": 3.0},
    {"sam_ascent_steps": 2},
    {"sam_ascent_fraction": 0.5, "sam_method": "gsam"},
    {"sam_rho_schedule": "auto", "sam_rho": None},
    {"sam_interval": 2},
]


class Convolutions(nn.Module):
    accepts_loss_kwargs = False

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1)
        self.second = nn.Conv2d(4, 6, 3)
        self.head = nn.Linear(6, LABELS)

    def forward(self, x, labels=None):
        logits = self.head(self.second(torch.tanh(self.first(x))).mean((2, 3)))
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}


def images(dtype):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(16, 3, 6, 5, generator=generator, dtype=torch.float64).to(dtype)
    return [{"x": image, "labels": torch.tensor(i % LABELS)} for i, image in enumerate(pixels)]


def weights_after(layout, output_dir, dtype=torch.float64, **options) -> torch.Tensor:
    torch.manual_seed(0)
    model = Convolutions().to(dtype).to(memory_format=layout)
    # The default optimizer of transformers. Its kernel reads weights, gradients and moments in the order in which they
    # lie in memory, and it is silently wrong if these orders differ
    options = {"optim": "adamw_torch_fused", "learning_rate": 0.01, "sam_rho": 0.1, "max_steps": 4} | options
    trained(model, images(dtype), output_dir, **options)
    assert model.second.weight.is_contiguous(memory_format=layout)
    return flat(model)


@pytest.mark.parametrize("options", [*({"sam_method": name} for name in CONVOLUTIONAL), *AXES], ids=str)
def test_same_training_in_both_layouts(options, tmp_path):
    usual = weights_after(torch.contiguous_format, tmp_path, **options)
    assert torch.allclose(weights_after(torch.channels_last, tmp_path, **options), usual, rtol=0, atol=1e-9)


@pytest.mark.parametrize("options", [{}, {"sam_stochastic_rounding": True, "sam_rho": 1e-3}], ids=str)
def test_bf16_weights(options, tmp_path):
    usual = weights_after(torch.contiguous_format, tmp_path, torch.bfloat16, **options)
    other = weights_after(torch.channels_last, tmp_path, torch.bfloat16, **options)
    # One update in the wrong order moves weights by twice the learning rate
    assert (other.double() - usual.double()).abs().max() < 0.02


def test_resume_is_exact(tmp_path):
    from transformers import ResNetConfig, ResNetForImageClassification

    def model():
        torch.manual_seed(0)
        config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], num_labels=LABELS)
        return ResNetForImageClassification(config).to(memory_format=torch.channels_last)

    data = [{"pixel_values": row["x"], "labels": row["labels"]} for row in images(torch.float32)]
    options = {"optim": "adamw_torch_fused", "learning_rate": 0.01, "sam_rho": 0.1, "max_steps": 4}
    options |= {"sam_method": "fsam", "save_strategy": "steps", "save_steps": 2}
    whole = trained(model(), data, tmp_path, **options).model
    again = trainer_of(model(), data, tmp_path, **options)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert again.state.global_step == 4 and torch.equal(flat(again.model), flat(whole))

"""SAM with LoRA adapters of a 4-bit model perturbs the adapters, and neither moves nor copies the base."""

from __future__ import annotations

import pytest
import torch
from copies import CopiesOf
from tiny import sentences, snapshot, trainer_of
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

peft = pytest.importorskip("peft")
pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.gpu

LORA = {"task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj", "v_proj"], "init_lora_weights": False}


def quantised(folder):
    """Return a seeded Llama with linear layers in nf4. Widths are multiples of the 64 weights that share a scale."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=32, initializer_range=0.1, **sizes)).save_pretrained(folder)
    four_bits = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        # The test by hand and training compute in the same precision
        bnb_4bit_compute_dtype=torch.float32,
    )
    return LlamaForCausalLM.from_pretrained(folder, quantization_config=four_bits, device_map={"": 0})


def adapted(folder):
    model = peft.prepare_model_for_kbit_training(quantised(folder), use_gradient_checkpointing=False)
    torch.manual_seed(0)
    return peft.get_peft_model(model, peft.LoraConfig(**LORA))


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def texts(size):
    return [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in sentences(size)]


def adapter_gradients(model, data):
    batch = {key: torch.stack([row[key] for row in data]).to(model.device) for key in data[0]}
    parameters = trainable(model)
    return dict(zip(parameters, torch.autograd.grad(model(**batch).loss, list(parameters.values())), strict=True))


def test_the_base_is_in_four_bits(tmp_path):
    model = adapted(tmp_path)
    packed = [p for p in model.parameters() if p.dtype == torch.uint8]
    assert len(packed) == 2 * 7  # in each of two layers, four projections of attention and three of the perceptron
    assert all(p.dtype == torch.float32 for p in trainable(model).values())


def test_epsilon_covers_the_adapters(tmp_path):
    model, seen = adapted(tmp_path / "model"), []
    trainer = trainer_of(model, texts(4), tmp_path, use_cpu=False, max_steps=1, sam_rho=0.2)
    gradient = adapter_gradients(model.train(), texts(4))
    norm = torch.cat([g.flatten() for g in gradient.values()]).norm()
    model.register_forward_pre_hook(
        lambda *_: seen.append({k: p.detach().clone() for k, p in trainable(model).items()})
    )
    trainer.train()
    w, perturbed = seen
    for key, g in gradient.items():
        torch.testing.assert_close((perturbed[key] - w[key]).detach(), 0.2 * g / norm, rtol=1e-3, atol=1e-6)


def test_the_base_model_is_neither_moved_nor_copied(tmp_path):
    model = adapted(tmp_path / "model")
    before = snapshot(model)
    trainer = trainer_of(model, texts(8), tmp_path, use_cpu=False, max_steps=3, sam_rho=0.2)
    with CopiesOf([p for p in model.parameters() if p.dtype == torch.uint8]) as base:
        trainer.train()
    assert not base.elements
    moved = {key for key, tensor in snapshot(model).items() if not torch.equal(tensor, before[key])}
    assert moved == trainable(model).keys()
    assert trainer.state.log_history[0]["sam_skipped"] == 0
    assert trainer.state.log_history[0]["sam_sharpness"] > 0

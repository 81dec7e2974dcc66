"""SAM over PEFT's adapters: ε covers what is trained, and of the frozen base model nothing is copied or changed."""

from __future__ import annotations

import copy

import pytest
import torch
from copies import CopiesOf
from safetensors.torch import load_file
from tiny import assert_same, bert, sentences, snapshot, trained, trainer_of

peft = pytest.importorskip("peft")

LORA = {"task_type": "SEQ_CLS", "r": 2, "target_modules": ["query", "value"]}
CONFIGS = {
    # B starts at zero unless asked otherwise, and ε would be zero on all of A
    "lora": lambda: peft.LoraConfig(**LORA, init_lora_weights=False),
    "lora at its start": lambda: peft.LoraConfig(**LORA),
    "rslora": lambda: peft.LoraConfig(**LORA, use_rslora=True, init_lora_weights=False),
    "dora": lambda: peft.LoraConfig(**LORA, use_dora=True, init_lora_weights=False),
    "modules_to_save": lambda: peft.LoraConfig(**LORA, modules_to_save=["classifier", "pooler"]),
    "ia3": lambda: peft.IA3Config(
        task_type="SEQ_CLS", target_modules=["query", "intermediate.dense"], feedforward_modules=["intermediate.dense"]
    ),
    "prompt tuning": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=2),
}


def adapted(name: str = "lora", dropout: float = 0.0, **changes):
    config = CONFIGS[name]()
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    # Room for the virtual tokens of prompt tuning
    model = peft.get_peft_model(bert(dropout=dropout, max_position_embeddings=16), config)
    return model.double()


def trainable(model):
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model, data):
    batch = {key: torch.stack([example[key] for example in data]) for key in data[0]}
    parameters = list(trainable(model).values())
    return torch.autograd.grad(model(**batch).loss, parameters)


@pytest.mark.parametrize("name", CONFIGS)
def test_update_of_a_hand_written_loop(tmp_path, name):
    """ε = ρ g/‖g‖ over the trained parameters alone, and the base optimizer steps from w along the gradient there."""
    data, model = sentences(4), adapted(name)
    before = snapshot(model)
    perturbed, seen = copy.deepcopy(model).train(), []
    model.register_forward_pre_hook(lambda *_: seen.append(snapshot(model)))
    trained(model, data, tmp_path, max_steps=1, sam_rho=0.2)

    ascent = gradients(perturbed, data)
    norm = torch.cat([g.flatten() for g in ascent]).norm()
    with torch.no_grad():
        for p, g in zip(trainable(perturbed).values(), ascent, strict=True):
            p += 0.2 * g / norm
    _, at_descent = seen
    for key, p in trainable(perturbed).items():
        torch.testing.assert_close(at_descent[key], p, rtol=1e-12, atol=1e-12)
    for (key, p), g in zip(trainable(model).items(), gradients(perturbed, data), strict=True):
        torch.testing.assert_close(p, before[key] - 0.05 * g, rtol=1e-11, atol=1e-12)
    # Trained parameters with a gradient moved, and nothing else
    moved = {key for key, tensor in snapshot(model).items() if not torch.equal(tensor, before[key])}
    assert moved and moved <= trainable(model).keys()


@pytest.mark.parametrize("name", CONFIGS)
def test_nothing_of_the_base_model_is_copied(tmp_path, name):
    model = adapted(name)
    trainer = trainer_of(model, sentences(8), tmp_path, max_steps=2, sam_rho=0.2, sam_ascent_steps=2)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert sum(p.numel() for p in frozen) > 100
    with CopiesOf(frozen) as base, CopiesOf(trainable(model).values()) as adapters:
        trainer.train()
    assert not base.elements
    # w is saved once an update, and put back once
    assert adapters.elements["_foreach_copy_"] == 2 * 2 * sum(p.numel() for p in trainable(model).values())
    assert not adapters.elements["clone"]


def test_saved_adapters_load(tmp_path):
    model = adapted("modules_to_save")
    trainer = trained(model, sentences(16), tmp_path / "run", sam_rho=0.2)
    trainer.save_model(str(tmp_path / "saved"))
    stored = load_file(tmp_path / "saved" / "adapter_model.safetensors")
    assert len(stored) == len(trainable(model))
    loaded = peft.PeftModel.from_pretrained(bert(max_position_embeddings=16), tmp_path / "saved").double()
    assert_same(snapshot(loaded), snapshot(model))
    other = adapted("modules_to_save")
    other.load_adapter(str(tmp_path / "saved"), adapter_name="trained")
    other.set_adapter("trained")
    batch = {key: torch.stack([example[key] for example in sentences(4)]) for key in ("input_ids", "attention_mask")}
    torch.testing.assert_close(other.eval()(**batch).logits, model.eval()(**batch).logits)


@pytest.mark.parametrize("name", ["lora", "dora", "modules_to_save", "prompt tuning"])
def test_resumed_training_is_uninterrupted_training(tmp_path, name):
    dropout = {} if name == "prompt tuning" else {"lora_dropout": 0.2}
    run = {"sam_rho": 0.2, "gradient_accumulation_steps": 2, "optim": "adamw_torch", "learning_rate": 0.01}
    run |= {"save_strategy": "steps", "save_steps": 3}

    def start():
        return trainer_of(adapted(name, dropout=0.2, **dropout), sentences(32), tmp_path, **run)

    whole = start()
    whole.train()
    resumed = start()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 6
    assert_same(snapshot(resumed.model), snapshot(whole.model))


def test_merged_adapters_are_the_trained_model(tmp_path):
    model = adapted()
    before = snapshot(model)
    trained(model, sentences(16), tmp_path, sam_rho=0.2)
    batch = {key: torch.stack([example[key] for example in sentences(4)]) for key in ("input_ids", "attention_mask")}
    logits = model.eval()(**batch).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged.eval()(**batch).logits, logits, rtol=1e-10, atol=1e-12)
    query = "bert.encoder.layer.0.attention.self.query"
    base = before[f"base_model.model.{query}.base_layer.weight"]
    assert not torch.equal(merged.get_parameter(f"{query}.weight"), base)

    # Adapters over what was merged train as over any model
    again = peft.get_peft_model(merged, CONFIGS["lora"]())
    before = snapshot(again)
    trained(again, sentences(16), tmp_path, sam_rho=0.2)
    moved = {key for key, tensor in snapshot(again).items() if not torch.equal(tensor, before[key])}
    assert moved == trainable(again).keys()


def test_only_the_active_adapter_is_perturbed(tmp_path):
    model = adapted()
    model.add_adapter("second", peft.LoraConfig(**LORA, init_lora_weights=False))
    model.double().set_adapter("second")
    before = snapshot(model)
    trained(model, sentences(16), tmp_path, sam_rho=0.2)
    moved = {key for key, tensor in snapshot(model).items() if not torch.equal(tensor, before[key])}
    assert moved == trainable(model).keys()
    assert moved and not any(".default." in key for key in moved)

"""A tiny language model that transformers shards with FSDP2 while it loads, and the cases in which it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

MICRO_BATCH = 4
UPDATES = 3
ACCUMULATION = 3
RANKS = 2


@dataclass
class Case:
    """
    Attributes:
        arguments: fields of SAMTrainingArguments.
        sizes: arguments of DistributedConfig.
        adapters: LoRA adapters, which are replicated next to the shards.
        trained: full name of a sharded weight that is trained in addition to the adapters.
        draws: each pass draws random numbers that change nothing, so slices leave other ones than a whole micro-batch.
        not_finite: the first ascent pass of rank 1's second update has a NaN gradient.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=lambda: {"fsdp_size": RANKS})
    adapters: bool = False
    trained: str | None = None
    draws: bool = False
    not_finite: bool = False


OWN_GROUPS = {"sam_m": MICRO_BATCH}
HYBRID = {"fsdp_size": 1, "dp_replicate_size": RANKS}

CASES = {
    "window": Case(),
    "m = micro-batch": Case(OWN_GROUPS),
    "slices": Case({"sam_m": 2}),
    "slices, random numbers": Case({"sam_m": 2}, draws=True),
    "two ascent steps": Case({"sam_ascent_steps": 2}),
    "not finite on one rank": Case(not_finite=True),
    "hybrid": Case(sizes=HYBRID),
    "hybrid, m = micro-batch": Case(OWN_GROUPS, HYBRID),
    "adapters": Case(adapters=True),
    "adapters, m = micro-batch": Case(OWN_GROUPS, adapters=True),
    "adapters and shards": Case(adapters=True, trained="model.norm.weight"),
    "adapters and shards, m = micro-batch": Case(OWN_GROUPS, adapters=True, trained="model.norm.weight"),
}


def save_model(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=8,
        initializer_range=0.3,
    )
    LlamaForCausalLM(config).double().save_pretrained(folder)


def load_model(folder: Path, case: Case, **options: Any) -> nn.Module:
    model: nn.Module = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float64, **options)
    if case.adapters:
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(0)
        lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        model = get_peft_model(model, lora, autocast_adapter_dtype=False).double()
        if case.trained:
            model.base_model.model.get_parameter(case.trained).requires_grad_(True)
    if case.draws:
        model.register_forward_pre_hook(draw)
    return model


def draw(module: nn.Module, args: Any) -> None:
    """Draw a random number in training, as dropout does."""
    if module.training:
        torch.rand(())


def dataset() -> list[dict[str, torch.Tensor]]:
    size = RANKS * MICRO_BATCH * ACCUMULATION * UPDATES
    words = torch.randint(0, 16, (size, 6), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row.clone()} for row in words]

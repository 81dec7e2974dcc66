from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from ..tensors.lists import local, sum_dtype
from ..tensors.norms import global_norm
from ..tensors.rounding import LOW_PRECISION
from ._base import Cost, Method, Option

_SCHEDULES = {
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "constant": lambda progress: 1.0,
}


class NBAR(Method):
    r"""
    nBAR (Li, Zhang, He: "Implicit Regularization of Sharpness-Aware Minimization for Scale-Invariant Problems",
    NeurIPS 2024, arXiv 2410.14802), for LoRA adapters.

        if ‖g_A‖ ≥ ‖g_B‖:  A ← (1 + αη) A,  B ← (1 − αη) B;   otherwise the signs swap

    An adapter's product BA does not change if A grows while B shrinks. SAM balances ‖A‖ and ‖B‖ of such a pair. nBAR
    does this directly for each pair, just before the optimizer steps, and saves the second pass. η is the learning
    rate. α changes over training: `schedule` is `linear`, `cosine` or `constant`. There is no radius ρ. α has to be
    tuned; its default here is 0.2, decayed linearly.
    """

    name = "nbar"
    title = "Balancedness-aware regularisation of LoRA adapters"
    paper = "https://arxiv.org/abs/2410.14802"
    citation = """@inproceedings{li2024implicit,
  title={Implicit Regularization of Sharpness-Aware Minimization for Scale-Invariant Problems},
  author={Bingcong Li and Liang Zhang and Niao He},
  booktitle={Advances in Neural Information Processing Systems},
  year={2024}
}"""
    summary = "Balances LoRA's A and B as SAM would, without a second pass."
    cost = Cost(passes="1", memory="0")
    options = {
        "alpha": Option(0.2, "strength, multiplied by the learning rate", "a finite number >= 0", lambda x: x >= 0),
        "schedule": Option("linear", "how α changes over training", ", ".join(_SCHEDULES), lambda x: x in _SCHEDULES),
    }
    refuses = {
        f"sam_{field}": "it does not perturb the weights"
        for field in ("rho", "rho_schedule", "p", "ascent_steps", "m", "ascent_fraction", "target_modules")
    }
    perturbs = False
    alpha: float
    schedule: str

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._pairs: list[tuple[Tensor, Tensor]] = []
        self._strength = 0.0

    def bind(self, model: nn.Module) -> None:
        self._pairs = [(a, b) for a, b in adapter_pairs(model) if a.requires_grad and b.requires_grad]
        if not self._pairs:
            raise ValueError(
                "sam_method='nbar' balances LoRA adapters, but the model trains none. Add them (peft.get_peft_model, "
                "or --lora_r in the scripts), or use sam_method='sam'."
            )
        if low_precision := {a.dtype for a, _ in self._pairs} & set(LOW_PRECISION):
            raise ValueError(
                f"sam_method='nbar' scales LoRA adapters by 1 ± αη, which rounds to 1 in {low_precision.pop()}. Keep "
                "the adapters in float32 (peft does unless autocast_adapter_dtype=False), and train with bf16=True."
            )

    def begin_update(self, active: bool, progress: float) -> None:
        self._strength = self.alpha * _SCHEDULES[self.schedule](progress) if active else 0.0

    @torch.no_grad()
    def before_step(self, optimizer: Optimizer) -> None:
        if self._strength == 0:
            return
        rates = {parameter: group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
        if not any(a in rates for a, _ in self._pairs):
            raise ValueError(
                "sam_method='nbar' balances the LoRA adapters that the optimizer steps, and it steps none of them, or "
                "copies. Use another optimizer, or give it the parameters of the adapters."
            )
        for a, b in self._pairs:
            if a.grad is None or b.grad is None or a not in rates:
                continue
            norm_a, norm_b = global_norm([a.grad]), global_norm([b.grad])
            sign = torch.where(norm_a >= norm_b, 1.0, -1.0).to(sum_dtype(a.dtype))
            change = sign * (self._strength * rates[a])
            local(a).mul_((1 + change).to(a.device, a.dtype))
            local(b).mul_((1 - change).to(b.device, b.dtype))


def adapter_pairs(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    """Return (A, B) of each LoRA adapter in a PEFT model, including those of embeddings."""
    pairs = []
    for module in model.modules():
        for name_a, name_b in (("lora_A", "lora_B"), ("lora_embedding_A", "lora_embedding_B")):
            adapters_a: Any = getattr(module, name_a, None)
            adapters_b: Any = getattr(module, name_b, None)
            if not isinstance(adapters_a, (nn.ModuleDict, nn.ParameterDict)):  # has the same name, but is not PEFT's
                continue
            for adapter in adapters_a:
                a: Any = adapters_a[adapter]
                b: Any = adapters_b[adapter]
                pairs.append((getattr(a, "weight", a), getattr(b, "weight", b)))
    return pairs

"""What a model is made of, as far as SAM has to know: looked up once a run, since walking a model takes long."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from .perturbed_parameters import left_out, plain_name
from .random_state import random_devices
from .running_statistics import normalisation_with_statistics


class ModelStructure:
    """
    Args:
        model (`nn.Module`): as prepared by accelerate.
        targets (`str` or `Sequence[str]`, *optional*, defaults to `"all"`): `sam_target_modules`.
        device (`torch.device`): where the inputs are put.
        data_parallel (`int`, *optional*, defaults to `1`): devices that `nn.DataParallel` copies the model to.

    Attributes:
        names: all parameters of the model with their names, frozen ones too: those may be unfrozen in mid-run.
        left_out: those of them that ε does not cover.
        checkpoints_reentrantly: activations are checkpointed in torch's older way, whoever asked for it.
        normalisation: the modules that keep running statistics.
        random_devices: the accelerators that a pass draws random numbers on.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        targets: str | Sequence[str] = "all",
        data_parallel: int = 1,
    ):
        self.model = model
        self.targets = targets
        own = bare(model)
        self.names = {parameter: plain_name(name) for name, parameter in own.named_parameters()}
        self.left_out = left_out(own, targets)
        modules = list(model.modules())
        self.checkpoints_reentrantly = any(_checkpoints_reentrantly(module) for module in modules)
        self.normalisation = normalisation_with_statistics(modules)
        self.random_devices = random_devices({device, *(p.device for p in self.names)}, data_parallel)

    def covers(self, parameter: nn.Parameter) -> bool:
        """ε does. Parameters of loss modules, which the model does not have, are in none of the modules chosen."""
        return parameter not in self.left_out and (parameter in self.names or self.targets in ("all", "no_norm"))

    def own_name(self, parameter: nn.Parameter) -> str:
        """`weight`, `bias`, ...; empty for a parameter that is none of the model's."""
        return self.names.get(parameter, "").rpartition(".")[2]


def _checkpoints_reentrantly(module: nn.Module) -> bool:
    checkpoint = getattr(module, "_gradient_checkpointing_func", None)
    return bool(
        getattr(module, "gradient_checkpointing", False) and getattr(checkpoint, "keywords", {}).get("use_reentrant")
    )


def bare(model: nn.Module) -> nn.Module:
    """The model without what DDP, `nn.DataParallel` and `torch.compile` put around it."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif hasattr(model, "_orig_mod"):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model

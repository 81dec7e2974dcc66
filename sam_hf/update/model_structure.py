"""What a model consists of, as far as an update must know it. Walking a model is slow, so it is done once per run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from .perturbed_parameters import left_out, plain_name
from .random_state import random_devices
from .running_statistics import normalisation_with_statistics


class ModelStructure:
    """
    Args:
        model (`nn.Module`): the model as accelerate has prepared it.
        device (`torch.device`): the device of the inputs.
        targets (`str` or `Sequence[str]`, *optional*, defaults to `"all"`): `sam_target_modules`.
        data_parallel (`int`, *optional*, defaults to `1`): devices that `nn.DataParallel` copies the model to.

    Attributes:
        names: the names of all parameters, also of frozen ones, which may be unfrozen during the run.
        left_out: the parameters that epsilon does not cover.
        checkpoints_reentrantly: some module uses torch's older, reentrant activation checkpointing.
        normalisation: the modules that keep running statistics.
        random_devices: the accelerators on which a pass draws random numbers.
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
        unwrapped = extract_model_from_parallel(model, keep_torch_compile=False)
        self.names = {parameter: plain_name(name) for name, parameter in unwrapped.named_parameters()}
        self.left_out = left_out(unwrapped, targets)
        modules = list(model.modules())
        self.checkpoints_reentrantly = any(_checkpoints_reentrantly(module) for module in modules)
        self.normalisation = normalisation_with_statistics(modules)
        self.random_devices = random_devices({device, *(p.device for p in self.names)}, data_parallel)

    def covers(self, parameter: nn.Parameter) -> bool:
        """Return whether epsilon covers the parameter. Parameters of loss modules belong to no chosen module."""
        return parameter not in self.left_out and (parameter in self.names or self.targets in ("all", "no_norm"))

    def own_name(self, parameter: nn.Parameter) -> str:
        """Return `weight`, `bias`, ...; an empty text for a parameter that the model does not have."""
        return self.names.get(parameter, "").rpartition(".")[2]


def _checkpoints_reentrantly(module: nn.Module) -> bool:
    checkpoint = getattr(module, "_gradient_checkpointing_func", None)
    return bool(
        getattr(module, "gradient_checkpointing", False) and getattr(checkpoint, "keywords", {}).get("use_reentrant")
    )

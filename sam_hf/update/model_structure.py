"""What a model consists of, as far as an update must know it, and which of its parameters are perturbed."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

from .random_state import random_devices
from .running_statistics import normalisation_with_statistics

# Other norms (RMSNorm, and those that the models of transformers define: T5, Llama) are found by their class names
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


def perturbed_parameters(of_model: Sequence[nn.Parameter], optimizer: Optimizer | None) -> list[nn.Parameter]:
    """
    Return the trainable parameters of the optimizer, each once. Without an optimizer, which a training loop of the
    user's own does not show to Trainer, return those of the model.

    The optimizer decides, because loss modules can own parameters that the model does not have, and a parameter that
    the optimizer does not step is not part of w.
    """
    if optimizer is None:
        return [p for p in of_model if p.requires_grad]
    parameters = dict.fromkeys(p for group in optimizer.param_groups for p in group["params"])
    return [p for p in parameters if p.requires_grad]


def is_norm(module: nn.Module) -> bool:
    # A module with children is not a norm: every class of RobertaPreLayerNorm has "Norm" in its name
    by_name = "Norm" in type(module).__name__ and not any(True for _ in module.children())
    return isinstance(module, _NORMS) or by_name


def left_out(model: nn.Module, targets: str | Sequence[str]) -> set[nn.Parameter]:
    """
    Return the parameters of the model that epsilon does not cover.

    Args:
        targets (`str` or `Sequence[str]`): `sam_target_modules`: `"all"`; `"norm"` or `"no_norm"`, by the type of the
            modules; a regular expression that a module's whole name must match; or suffixes of module names. A chosen
            module includes its submodules.

    Raises:
        ValueError: the targets choose no module with a trainable parameter.
    """
    if targets == "all":
        return set()
    everything = set(model.parameters())
    if targets in ("norm", "no_norm"):
        norms = {p for module in model.modules() if is_norm(module) for p in module.parameters()}
        outside = everything - norms if targets == "norm" else norms
    else:
        chosen = [module for name, module in model.named_modules() if _matches(plain_name(name), targets)]
        outside = everything - {p for module in chosen for p in module.parameters()}
    if not any(p.requires_grad for p in everything - outside):
        examples = ", ".join(
            [plain_name(name) for name, module in model.named_modules() if list(module.parameters(False))][:5]
        )
        raise ValueError(
            f"sam_target_modules={targets!r} chooses no trainable parameter. Modules of this model with parameters: "
            f"{examples}, ..."
        )
    return outside


def _matches(name: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in targets)


def plain_name(name: str) -> str:
    """Return the name of a module or parameter without the wrapper names that torch.compile adds."""
    return name.replace("_orig_mod.", "")


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
        modules: all modules, each before those inside it.
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
        self.modules = list(model.modules())
        self.checkpoints_reentrantly = any(_checkpoints_reentrantly(module) for module in self.modules)
        self.normalisation = normalisation_with_statistics(self.modules)
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

"""Which parameters are perturbed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

# RMSNorm and those that transformers' models define themselves (T5, Llama) go by the names of their classes
_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


def perturbed_parameters(of_model: Sequence[nn.Parameter], optimizer: Optimizer | None) -> list[nn.Parameter]:
    """
    The trainable parameters of the optimizer, each once; of the model, where a loop of the user's own keeps its
    optimizer to itself.

    From the optimizer and not from the model: loss modules may own parameters that the model does not have, and what
    the optimizer does not step is no part of w.
    """
    if optimizer is None:
        return [p for p in of_model if p.requires_grad]
    parameters = dict.fromkeys(p for group in optimizer.param_groups for p in group["params"])
    return [p for p in parameters if p.requires_grad]


def is_norm(module: nn.Module) -> bool:
    # A module that contains others is none: all classes of RobertaPreLayerNorm have the word in their names
    by_name = "Norm" in type(module).__name__ and not any(True for _ in module.children())
    return isinstance(module, _NORMS) or by_name


def left_out(model: nn.Module, targets: str | Sequence[str]) -> set[nn.Parameter]:
    """
    The parameters of the model that ε does not cover.

    Args:
        targets (`str` or `Sequence[str]`): `sam_target_modules`: `"all"`; `"norm"` or `"no_norm"`, by the type of the
            modules; a regular expression that a module's whole name must match; or suffixes of module names. What a
            module contains belongs to it.

    Raises:
        ValueError: no module, or none with a parameter that is trained, is chosen.
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
        some = ", ".join(
            [plain_name(name) for name, module in model.named_modules() if list(module.parameters(False))][:5]
        )
        raise ValueError(
            f"sam_target_modules={targets!r} chooses no parameter that is trained. Modules of this model with "
            f"parameters: {some}, ..."
        )
    return outside


def _matches(name: str, targets: str | Sequence[str]) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, name) is not None
    return any(name == suffix or name.endswith(f".{suffix}") for suffix in targets)


def plain_name(name: str) -> str:
    """A module's or parameter's name without what torch.compile puts around parts of a model."""
    return name.replace("_orig_mod.", "")

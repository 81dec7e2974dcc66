"""Which parameters are perturbed."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim import Optimizer

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

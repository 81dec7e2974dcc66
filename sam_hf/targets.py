"""Which parameters are perturbed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import Optimizer


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

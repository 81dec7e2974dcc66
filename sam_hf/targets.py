"""Which parameters are perturbed."""

from __future__ import annotations

from torch import nn
from torch.optim import Optimizer


def perturbed_parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    """
    The trainable parameters of the optimizer, each once.

    From the optimizer and not from the model: loss modules may own parameters that the model does not have, and what
    the optimizer does not step is no part of w.
    """
    parameters = dict.fromkeys(p for group in optimizer.param_groups for p in group["params"])
    return [p for p in parameters if p.requires_grad]

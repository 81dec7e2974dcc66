"""What a model is made of, as far as SAM has to know: looked up once a run, since walking a model takes long."""

from __future__ import annotations

import torch
from torch import nn

from .batch_norm import normalisation_with_statistics
from .rng import random_devices


class Layout:
    """
    Args:
        model (`nn.Module`): as prepared by accelerate.
        device (`torch.device`): where the inputs are put.
        data_parallel (`int`, *optional*, defaults to `1`): devices that `nn.DataParallel` copies the model to.

    Attributes:
        parameters: all of the model's, frozen ones too: those may be unfrozen in the middle of a run.
        normalisation: the modules that keep running statistics.
        random_devices: the accelerators that a pass draws random numbers on.
    """

    def __init__(self, model: nn.Module, device: torch.device, data_parallel: int = 1):
        self.model = model
        self.parameters = list(model.parameters())
        self.normalisation = normalisation_with_statistics(model)
        self.random_devices = random_devices({device, *(p.device for p in self.parameters)}, data_parallel)

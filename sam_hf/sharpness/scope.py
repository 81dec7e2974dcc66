"""What a measurement may not leave changed: put in order before it, and back bit for bit after it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ..update.random_state import RandomState


@contextmanager
def random_state_kept(devices: Sequence[torch.device]) -> Iterator[None]:
    state = RandomState(devices)
    try:
        yield
    finally:
        state.restore()


def seed_everything(seed: int, devices: Sequence[torch.device]) -> None:
    """Python's, NumPy's and torch's generators, those of `devices` included and no others."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in devices:
        state = torch.Generator(device).manual_seed(seed).get_state()
        torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards each module's own mode, and every buffer as it was."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module.named_buffers(recurse=False)
    ]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                module._buffers[name] = buffer


@contextmanager
def only_trained(model: nn.Module, chosen: Sequence[nn.Parameter]) -> Iterator[None]:
    """`requires_grad` for the `chosen` parameters alone."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    measured = set(chosen)
    try:
        for parameter, _ in before:
            parameter.requires_grad_(parameter in measured)
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


@contextmanager
def full_precision(model: nn.Module, device: torch.device) -> Iterator[None]:
    """No autocast: neither one around the call, nor the one that accelerate puts into `model.forward`."""
    wrapper = model.__dict__.get("forward") if "_original_forward" in model.__dict__ else None
    if wrapper is not None:
        model.forward = model.__dict__["_original_forward"]
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if wrapper is not None:
            model.forward = wrapper

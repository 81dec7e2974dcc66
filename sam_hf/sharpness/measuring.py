"""The state of model and generators during a measurement. Everything is put back afterwards, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from ..update.random_state import RandomState


@contextmanager
def measuring(model: nn.Module, parameters: Sequence[nn.Parameter], random_devices: Sequence[torch.device]):
    """Evaluation mode without autocast, in which only `parameters` require a gradient."""
    with (
        preserved_random_state(random_devices),
        _requiring_gradients(model, parameters),
        _evaluation_mode(model),
        _full_precision(model, parameters[0].device),
    ):
        yield


@contextmanager
def preserved_random_state(devices: Sequence[torch.device]) -> Iterator[None]:
    state = RandomState(devices)
    try:
        yield
    finally:
        state.restore()


def seed_everything(seed: int, devices: Sequence[torch.device]) -> None:
    """
    Seed the generators of Python, NumPy and torch, and those of `devices`.

    `transformers.set_seed` would also seed the accelerators that are not in `devices`, which nobody puts back.
    """
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    for device in devices:
        state = torch.Generator(device).manual_seed(seed).get_state()
        torch.get_device_module(device).set_rng_state(state, device)


@contextmanager
def _requiring_gradients(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    measured = set(parameters)
    try:
        for parameter, _ in before:
            parameter.requires_grad_(parameter in measured)
        yield
    finally:
        for parameter, requires_grad in before:
            parameter.requires_grad_(requires_grad)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Set evaluation mode. Afterwards each module has its own mode again, and each buffer its object and its value."""
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
def _full_precision(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Switch autocast off: one around the call, and the one that accelerate puts into `model.forward`."""
    wrapper = model.__dict__.get("forward") if "_original_forward" in model.__dict__ else None
    if wrapper is not None:
        model.forward = model.__dict__["_original_forward"]
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        if wrapper is not None:
            model.forward = wrapper

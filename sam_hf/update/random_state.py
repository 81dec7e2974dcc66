"""Saving and restoring the random number generators that a forward pass can draw from."""

from __future__ import annotations

import random
from collections.abc import Iterable

import numpy as np
import torch


class RandomState:
    """
    A snapshot of the generators of Python, NumPy and torch: the CPU generator and those of `devices`.

    Args:
        devices (`Iterable[torch.device]`): the accelerators whose generators are saved as well.
    """

    def __init__(self, devices: Iterable[torch.device] = ()):
        self._python = random.getstate()
        self._numpy = np.random.get_state()
        self._cpu = torch.get_rng_state()
        self._devices = {d: torch.get_device_module(d).get_rng_state(d) for d in devices}

    def restore(self) -> None:
        random.setstate(self._python)
        np.random.set_state(self._numpy)
        torch.set_rng_state(self._cpu)
        for device, state in self._devices.items():
            torch.get_device_module(device).set_rng_state(state, device)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, RandomState)
            and self._python == other._python
            and all(np.array_equal(a, b) for a, b in zip(self._numpy, other._numpy, strict=True))
            and torch.equal(self._cpu, other._cpu)
            and self._devices.keys() == other._devices.keys()
            and all(torch.equal(state, other._devices[d]) for d, state in self._devices.items())
        )


def random_devices(devices: Iterable[torch.device], data_parallel: int = 1) -> list[torch.device]:
    """
    Return the accelerators on which a pass draws random numbers.

    Args:
        devices (`Iterable[torch.device]`): the devices of the inputs and the parameters.
        data_parallel (`int`, *optional*, defaults to `1`): devices that `nn.DataParallel` copies the model to.
    """
    accelerators = {d for d in devices if d.type not in ("cpu", "meta")}
    if data_parallel > 1:
        accelerators |= {torch.device(d.type, index) for d in accelerators for index in range(data_parallel)}
    return sorted(accelerators, key=str)

"""Checks of arguments, and the choice of the weights that sharpness is measured over."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from torch import nn
from transformers.utils import logging

from ..tensors.lists import is_sharded
from ..tensors.rounding import LOW_PRECISION

logger = logging.get_logger(__name__)


def check(name: str, value: Any, is_allowed: bool, allowed: str) -> None:
    if not is_allowed:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")


def check_count(name: str, value: int, least: int, most: int | None = None, note: str = "") -> None:
    bounds = f">= {least}" if most is None else f"from {least} to {most}"
    check(name, value, value >= least and (most is None or value <= most), f"a number {bounds}{note}")


def check_radius(rho: float) -> None:
    check("rho", rho, 0 <= rho < math.inf, "a finite number >= 0")


def chosen_parameters(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Parameter]:
    """
    Return the parameters to measure over, by name, each once.

    Raises:
        ValueError: there are none, or they do not allow a meaningful measurement.
    """
    everything = dict(model.named_parameters())
    if names is None:
        chosen = {name: p for name, p in everything.items() if p.requires_grad}
    else:
        names = list(names)
        if unknown := [name for name in names if name not in everything]:
            raise ValueError(f"parameters: the model has no parameter {unknown[0]!r}.")
        chosen = {name: everything[name] for name in names}
    if not chosen:
        raise ValueError("There is no parameter to measure: none has requires_grad. Name them in `parameters`.")
    _check_parameters(chosen)
    low = {p.dtype for p in everything.values()} & set(LOW_PRECISION)
    if low:
        logger.warning(
            f"Some frozen weights are in {', '.join(map(str, low))}. Their rounding limits the precision of results."
        )
    return chosen


def _check_parameters(parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if parameter.dtype in LOW_PRECISION:
            raise ValueError(
                f"{name} is {parameter.dtype}, whose rounding hides curvature. Load the model in float32: "
                "from_pretrained(..., dtype=torch.float32), or model.float()."
            )
        if is_sharded(parameter) or hasattr(parameter, "ds_id") or parameter.is_meta:
            raise ValueError(
                f"{name} is sharded (FSDP, DeepSpeed, tensor parallelism) or offloaded. Save the model, and measure "
                "the checkpoint on one device or under DDP."
            )
        if not parameter.is_floating_point():
            raise ValueError(f"{name} is {parameter.dtype}, which has no gradient.")
    dtypes = {parameter.dtype for parameter in parameters.values()}
    devices = {parameter.device for parameter in parameters.values()}
    if len(dtypes) > 1 or len(devices) > 1:
        raise ValueError(
            f"The parameters have several dtypes or devices ({', '.join(map(str, [*dtypes, *devices]))}). Move the "
            "model to one device and to float32."
        )

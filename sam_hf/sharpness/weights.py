"""Which weights sharpness is measured over, and whether it can be."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers.utils import logging

from ..tensors.lists import is_sharded
from ..tensors.rounding import LOW_PRECISION

logger = logging.get_logger(__name__)


def chosen_parameters(model: nn.Module, names: Iterable[str] | None) -> dict[str, nn.Parameter]:
    """
    The parameters to measure over, by name, each once.

    Raises:
        ValueError: there are none, or a measurement over them would be none.
    """
    everything = dict(model.named_parameters())
    if names is None:
        chosen = {name: p for name, p in everything.items() if p.requires_grad}
    else:
        names = list(names)
        if unknown := [name for name in names if name not in everything]:
            raise ValueError(f"parameters: {unknown[0]!r} is none of the model's")
        chosen = {name: everything[name] for name in names}
    if not chosen:
        raise ValueError("There is no parameter to measure: none has requires_grad. Name them in `parameters`.")
    _check(chosen)
    low = {p.dtype for p in everything.values()} & set(LOW_PRECISION)
    if low:
        logger.warning(f"Frozen weights in {', '.join(map(str, low))}: their rounding limits what is measured.")
    return chosen


def _check(parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if parameter.dtype in LOW_PRECISION:
            raise ValueError(
                f"{name} is {parameter.dtype}, whose rounding hides curvature. Load the model in float32: "
                "from_pretrained(..., dtype=torch.float32), or model.float()."
            )
        if is_sharded(parameter) or hasattr(parameter, "ds_id") or parameter.is_meta:
            raise ValueError(
                f"{name} is sharded (FSDP, DeepSpeed, tensor parallelism) or offloaded. Save the model, and measure "
                "the checkpoint on one device, or under DDP."
            )
        if not parameter.is_floating_point():
            raise ValueError(f"{name} is {parameter.dtype}: it has no gradient")
    dtypes = {parameter.dtype for parameter in parameters.values()}
    devices = {parameter.device for parameter in parameters.values()}
    if len(dtypes) > 1 or len(devices) > 1:
        raise ValueError(
            f"The parameters are of several dtypes or devices ({', '.join(map(str, [*dtypes, *devices]))}). Move the "
            "model to one device and to float32."
        )

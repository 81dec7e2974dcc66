"""
Runs whose loss or weights are not finite any more. Trainer's log does not show it (`logging_nan_inf_filter`), and its
checkpoints take the place of good ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from ..errors import DivergedError, UsageError
from ..trainer.replacing import replaced


class DivergenceWatch(TrainerCallback):
    """
    Notes since which update the loss is NaN or infinite, and stops a run whose weights are: they stay so. They are
    looked at before each log, evaluation and save, so no checkpoint gets such weights.

    Args:
        trainer ([`SAMMixin`]): the trainer, already built. The watch has to be among its callbacks.

    Attributes:
        stopped_at: the update after which the run was stopped; 0 if it was not.
    """

    def __init__(self, trainer: Any):
        self._trainer = trainer
        self._update = 0  # the one that the loss below belongs to
        self._is_bad: Tensor | None = None
        self._since: Tensor | None = None  # on the device, since reading it would wait for the device; 0: finite
        self.stopped_at = 0

    @contextmanager
    def over_losses(self) -> Iterator[None]:
        """Look at what each `training_step` returns. Trainer passes it to no callback."""
        step = self._trainer.training_step

        def watched(*args: Any, **kwargs: Any) -> Tensor:
            loss = step(*args, **kwargs)
            self._note(loss.detach())
            return loss

        with replaced(self._trainer, training_step=watched):
            yield

    def since(self) -> int:
        """Return the first of the last updates whose losses, in any process, are not finite; 0 if the last one is."""
        self._close_update()
        device = self._trainer.args.device
        own = torch.zeros((), dtype=torch.long, device=device) if self._since is None else self._since
        steps = [int(step) for step in self._trainer.accelerator.gather(own.reshape(1)).tolist()]
        return min((step for step in steps if step > 0), default=0)

    def on_step_end(self, args, state, control, **kwargs):
        self._stop_if_diverged(state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._stop_if_diverged(state, control)

    def _stop_if_diverged(self, state: Any, control: Any) -> None:
        is_due = control.should_log or control.should_evaluate or control.should_save
        if is_due and not self.stopped_at and count_non_finite(self._trainer):
            self.stopped_at = state.global_step
        if self.stopped_at:
            control.should_training_stop = True
            control.should_evaluate = control.should_save = False

    def _note(self, loss: Tensor) -> None:
        update = self._trainer.state.global_step + 1
        bad = ~torch.isfinite(loss).all()
        if update != self._update:
            self._close_update()
            self._update, self._is_bad = update, bad
        else:
            self._is_bad = bad if self._is_bad is None else self._is_bad | bad

    def _close_update(self) -> None:
        if self._is_bad is None:
            return
        since = torch.zeros_like(self._is_bad, dtype=torch.long) if self._since is None else self._since
        first = torch.where(since > 0, since, torch.full_like(since, self._update))
        self._since, self._is_bad = torch.where(self._is_bad, first, torch.zeros_like(since)), None


def non_finite(model: nn.Module, trained_only: bool = False) -> list[str]:
    """Return the names of the weights that hold NaN or infinity, and of the buffers that hold NaN."""
    weights = {name: p for name, p in model.named_parameters() if p.requires_grad or not trained_only}
    # A buffer can be a mask of −inf
    return [*_bad(weights.items(), torch.isfinite), *_bad(model.named_buffers(), lambda ends: ~torch.isnan(ends))]


def count_non_finite(trainer: Any) -> int:
    """Return the number of trained weights that hold NaN or infinity, over all processes."""
    count = torch.tensor(len(non_finite(trainer.model, trained_only=True)), device=trainer.args.device)
    return int(trainer.accelerator.reduce(count, reduction="sum"))


def refuse_non_finite(trainer: Any, source: str) -> None:
    """
    Refuse a model that came with NaN: it can neither be trained nor evaluated, but its classes look like answers.

    Args:
        trainer ([`SAMMixin`]): the trainer, before training.
        source (`str`): where the weights came from.
    """
    # Under FSDP, only the first process may have loaded the weights
    names = non_finite(trainer.model) if trainer.is_world_process_zero() else []
    count = torch.tensor(len(names), device=trainer.args.device)
    if int(trainer.accelerator.reduce(count, reduction="sum")):
        named = f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}" if names else "some"
        raise UsageError(f"{source} holds weights that are NaN or infinite ({named}): give another checkpoint")


def refuse_metrics(metrics: Mapping[str, float], written: str) -> None:
    """
    Raise [`DivergedError`] if an evaluation has metrics that are not finite.

    Args:
        metrics (`dict`): the metrics. Those of the sharpness have a warning of their own.
        written (`str`): what was written, to end the message with.
    """
    bad = [
        f"{name}={value}"
        for name, value in metrics.items()
        if not name.startswith("eval_sharpness") and isinstance(value, float) and not math.isfinite(value)
    ]
    if bad:
        raise DivergedError(f"the evaluation ended with {', '.join(bad)}. {written}")


def _bad(tensors: Iterable[tuple[str, Tensor]], is_good: Callable[[Tensor], Tensor]) -> list[str]:
    """Return the names of those tensors whose smallest or greatest value is not good."""
    by_device: dict[torch.device, list[tuple[str, Tensor]]] = {}
    for name, tensor in tensors:
        local = tensor.detach()
        local = local.to_local() if hasattr(local, "to_local") else local  # the own part of FSDP's shards
        if local.is_floating_point() and local.element_size() > 1 and local.numel() and not local.is_meta:
            # Both ends are NaN if any element is. This needs no memory of the size of the tensor
            good = is_good(torch.stack(torch.aminmax(local))).all()
            by_device.setdefault(local.device, []).append((name, good))
    names = []
    for entries in by_device.values():
        verdicts = torch.stack([good for _, good in entries]).tolist()
        names += [name for (name, _), good in zip(entries, verdicts, strict=True) if not good]
    return names

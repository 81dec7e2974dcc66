"""What one pass covers, how passes are run, and which of them share a perturbation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .rng import RandomState
from .running_means import RunningMeans


@dataclass
class Piece:
    """
    What one pass covers: a micro-batch, or a slice of its examples.

    Attributes:
        whole: the micro-batch it is of; `None` if it is all of it.
        ends_group: the last piece at w before ε is made.
        ends_window: the last piece of the window, whose descent pass reduces gradients over processes.
        random: the generators as the first pass over this piece found them.
    """

    inputs: dict[str, Any]
    whole: dict[str, Any] | None = None
    ends_group: bool = False
    ends_window: bool = False
    random: RandomState | None = None

    def replay_random(self) -> None:
        if self.random is not None:
            self.random.restore()


@dataclass
class Passes:
    """
    How passes are run. Everything the window needs to know of the trainer, the model and the arguments.

    Attributes:
        model: as prepared by accelerate: wrapped in DDP, sharded, compiled.
        forward_backward: `(piece, first)` → detached loss; one forward and backward of Trainer's own that adds to
            `p.grad`. `first`: no earlier pass covered these examples.
        advance_random: `(micro-batch)` → draw the random numbers that one plain pass over it draws.
        perturbed: the parameters that ε covers.
        all_parameters: those and every other parameter that may gather a gradient.
        normalisation: the modules whose running statistics only the first pass moves.
        loss_scale: the factor that fp16's scaler has put on the gradients, or `None`.
    """

    model: nn.Module
    forward_backward: Callable[[Piece, bool], Tensor]
    advance_random: Callable[[dict[str, Any]], Any]
    perturbed: Sequence[nn.Parameter]
    all_parameters: Sequence[nn.Parameter]
    means: RunningMeans
    normalisation: Sequence[nn.Module] = ()
    random_devices: Sequence[torch.device] = ()
    loss_scale: Callable[[], Tensor | None] = lambda: None
    sync_perturbation: bool = False
    sync_each_batch: bool = False
    replay_random: bool = True
    hold_statistics: bool = True


@dataclass
class Grouping:
    """m as Trainer's batches see it: micro-batches a group, or examples a group where a group is part of one."""

    micro_batches: int | None = None
    examples: int | None = None

    @classmethod
    def of(cls, m: int | None, micro_batch: int, data_parallel: int = 1) -> Grouping:
        """
        Args:
            m (`int`, *optional*): examples a device that share a perturbation; `None`: the whole window.
            micro_batch (`int`): examples a device of one micro-batch.
            data_parallel (`int`, *optional*, defaults to `1`): devices of `nn.DataParallel`; they share their weights,
                so they share ε too.
        """
        if m is None:
            return cls()
        if m >= micro_batch:
            return cls(micro_batches=m // micro_batch)
        return cls(examples=m * data_parallel)

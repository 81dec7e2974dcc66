"""What one pass covers, and how passes are run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.state import GradientState
from torch import Tensor, nn

from .groups import Piece
from .running_means import RunningMeans


@dataclass
class Passes:
    """
    How passes are run. Everything the window needs to know of the trainer, the model and the arguments.

    Attributes:
        model: as prepared by accelerate: wrapped in DDP, sharded, compiled.
        forward_backward: `(inputs, micro-batch they are of, counted)` → detached loss; one forward and backward of
            Trainer's own that adds to `p.grad`. `counted`: the one pass over these examples that Trainer counts.
        advance_random: `(micro-batch)` → draw the random numbers that one plain pass over it draws.
        ascent_share: `(group, its ascent gradient is a mean over processes)` → the share that the examples with an
            ascent pass have in the group's loss; in those of all processes then.
        perturbed: the parameters that ε covers.
        all_parameters: those and every other parameter that may gather a gradient.
        own_name: a parameter's own name, `weight` say.
        average: tensors → their means over processes.
        normalisation: the modules whose running statistics only the first pass moves.
        skip_unperturbed: ascent passes compute no gradient of what ε does not cover.
        loss_scale: the factor that fp16's scaler has put on the gradients, or `None`.
        gradient_state: accelerate's, see [`~sam_hf.update.gradients.gradient_sync`].
    """

    model: nn.Module
    forward_backward: Callable[[dict[str, Any], dict[str, Any], bool], Tensor]
    advance_random: Callable[[dict[str, Any]], Any]
    ascent_share: Callable[[Sequence[Piece], bool], Tensor]
    perturbed: Sequence[nn.Parameter]
    all_parameters: Sequence[nn.Parameter]
    means: RunningMeans
    own_name: Callable[[nn.Parameter], str] = lambda _: ""
    average: Callable[[list[Tensor]], list[Tensor]] = lambda tensors: tensors
    skip_unperturbed: bool = True
    normalisation: Sequence[nn.Module] = ()
    random_devices: Sequence[torch.device] = ()
    loss_scale: Callable[[], Tensor | None] = lambda: None
    gradient_state: GradientState | None = None
    sync_perturbation: bool = False
    sync_each_batch: bool = False
    replay_random: bool = True
    hold_statistics: bool = True

"""The interface through which a window of an update asks for forward and backward passes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from accelerate.state import GradientState
from torch import Tensor, nn

from .groups import Piece
from .model_structure import ModelStructure
from .running_means import RunningMeans


class PassRunner(ABC):
    """
    Runs passes over examples. A window decides which passes an update takes, and in which order; the runner runs them.

    One runner serves a whole training run. `sam_hf.trainer.runner.TrainerRunner` runs the passes of a Trainer. The
    methods here that are not abstract are right for one process without a loss scale.

    Attributes:
        means: collects the metrics of the updates.
    """

    means: RunningMeans

    @property
    @abstractmethod
    def model(self) -> nn.Module:
        """The model as accelerate has prepared it: wrapped in DDP, sharded, compiled."""

    @property
    @abstractmethod
    def structure(self) -> ModelStructure:
        """What the model consists of."""

    @property
    @abstractmethod
    def parameters(self) -> Sequence[nn.Parameter]:
        """Every parameter that can accumulate a gradient."""

    @property
    @abstractmethod
    def perturbed(self) -> Sequence[nn.Parameter]:
        """The parameters that epsilon covers."""

    @property
    def stepped(self) -> Sequence[nn.Parameter]:
        """The parameters that the optimizer steps, perturbed or not."""
        return self.parameters

    @property
    def gradient_state(self) -> GradientState | None:
        """accelerate's state, see [`~sam_hf.update.gradients.gradient_sync`]; `None` outside of accelerate."""
        return None

    @abstractmethod
    def plain_step(self, batch: dict[str, Any]) -> Tensor:
        """Run the plain training step over a micro-batch. Return its loss, detached."""

    @abstractmethod
    def forward_backward(self, inputs: dict[str, Any], micro_batch: dict[str, Any], counted: bool) -> Tensor:
        """
        Run one forward and one backward pass, which adds to `p.grad`. Return the loss, detached.

        Args:
            inputs: the examples: a micro-batch, or a slice of one. The pass does not change them.
            micro_batch: the micro-batch that they belong to. The loss and the gradient of a slice are its part of the
                micro-batch's.
            counted: Trainer's counters and logs include this pass. Exactly one pass over each example is counted.
        """

    @abstractmethod
    def advance_random(self, batch: dict[str, Any]) -> None:
        """Draw the random numbers that one plain pass over the micro-batch draws, and change nothing else."""

    @abstractmethod
    def examine_loss(self, batch: dict[str, Any], parts: Sequence[dict[str, Any]]) -> None:
        """
        Find out how much of the loss of a micro-batch belongs to a slice. A window calls this before it cuts `batch`.

        Args:
            batch: the micro-batch.
            parts: slices that together are the micro-batch; the micro-batch alone if it is a single example.

        Raises:
            ValueError: the losses of slices do not add up to the loss of the micro-batch.
        """

    @abstractmethod
    def ascent_share(self, pieces: Sequence[Piece], averaged: bool) -> Tensor:
        """
        Return the share of a group's loss that belongs to the examples with an ascent pass, 0-dimensional.

        Args:
            pieces: the whole group.
            averaged: the ascent gradient is a mean over processes, so the share is taken over the examples of all.
        """

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        """Return the means of the tensors over all processes."""
        return tensors

    def loss_scale(self) -> Tensor | None:
        """Return the factor that fp16's gradient scaler puts on the loss, or `None` without a scaler."""
        return None

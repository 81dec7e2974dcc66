"""
The passes over one accumulation window: which examples share a perturbation, and in which order they are passed over.

Trainer hands its micro-batches over one by one. Each belongs to a *group* of m examples that share one ε. A group's
pieces (whole micro-batches, or slices of one where m is smaller) are passed over at w as they come; with the last of
them, ε is known, the weights move to w + ε, the pieces are passed over again and the weights come back:

    m = None, 3 micro-batches    a₁ │ a₂ │ a₃ +ε d₁ d₂ d₃ −ε
    m = one micro-batch          a₁ +ε d₁ −ε │ a₂ +ε d₂ −ε │ a₃ +ε d₃ −ε

aᵢ: ascent pass, dᵢ: descent pass, │: back to Trainer. Descent gradients accumulate in `p.grad` as plain ones would.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .batch_norm import statistics_held
from .gradients import (
    dense,
    give_gradients_back,
    gradient_sync,
    has_bucket_views,
    is_fsdp,
    mark_used,
    take_gradients,
)
from .methods import Method
from .passes import Grouping, Passes, Piece
from .perturbation import Perturbation
from .rng import RandomState
from .rounding import StochasticRounding
from .running_means import RunningMeans
from .slices import first_dimension, slice_examples


@dataclass
class _Totals:
    """Sums over the window, for the metrics of one update."""

    loss: Tensor | float = 0.0
    perturbed_loss: Tensor | float = 0.0
    skipped: list[Tensor] = field(default_factory=list)


class Window:
    """
    One update.

    Args:
        size (`int`): micro-batches in the window.
        method ([`~sam_hf.methods.Method`], *optional*): what ε is made of; `None` only where `radius` is 0.
        radius (`float`): ρ of this update; 0: a plain one, which the window has no part in.
        steps (`int`): ascent steps k, each of radius ρ/k.
        grouping (`Grouping`): what shares one perturbation.
        rounding ([`~sam_hf.rounding.StochasticRounding`], *optional*): how w + ε is rounded to bf16 and fp16 weights.

    Attributes:
        perturbation_ratio (`Tensor` or `None`): what rounding left of the last ε, see [`Perturbation`].
    """

    def __init__(
        self,
        size: int,
        *,
        method: Method | None,
        radius: float,
        steps: int = 1,
        grouping: Grouping,
        rounding: StochasticRounding | None = None,
    ):
        self.size = size
        self.method = method
        self.radius = radius
        self.steps = steps
        self.grouping = grouping
        self.rounding = rounding
        self.perturbation_ratio: Tensor | None = None
        self._position = 0
        self._group: list[Piece] = []
        self._accumulated: dict[Tensor, Tensor] = {}
        self._used: dict[Tensor, None] = {}
        self._totals = _Totals()

    @property
    def is_complete(self) -> bool:
        """All micro-batches were passed over."""
        return self._position >= self.size

    def step(self, passes: Passes, batch: dict[str, Any]) -> Tensor:
        """
        Take the next micro-batch, and every pass that it completes.

        Returns:
            `Tensor`: its loss at w, detached, as Trainer's own `training_step` would return it.
        """
        self._position += 1
        ends_window = self.is_complete
        pieces = self._pieces(batch, ends_window)
        start = RandomState(passes.random_devices) if passes.replay_random and len(pieces) > 1 else None
        losses = []
        for piece in pieces:
            losses.append(self._ascent_pass(passes, piece))
            if piece.ends_group:
                self._finish_group(passes)
        if start is not None and RandomState(passes.random_devices) != start:
            # Slices draw other numbers than the micro-batch in one piece; what follows must not depend on m
            start.restore()
            with statistics_held(passes.normalisation):
                passes.advance_random(batch)
        if ends_window:
            self._report(passes.means)
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def abandon(self) -> None:
        """
        Leave what was accumulated so far in `p.grad`, as a window of plain training does that a callback breaks off:
        the next update takes it along.
        """
        for parameter, gradient in self._accumulated.items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._accumulated = {}

    def _pieces(self, batch: dict[str, Any], ends_window: bool) -> list[Piece]:
        size = self.grouping.examples
        if size is not None:
            total = first_dimension(batch)
            if total > size:
                slices = [slice_examples(batch, start, min(start + size, total)) for start in range(0, total, size)]
                pieces = [Piece(part, whole=batch, ends_group=True) for part in slices]
                pieces[-1].ends_window = ends_window
                return pieces
        per_group = 1 if size is not None else self.grouping.micro_batches
        ends_group = ends_window or (per_group is not None and self._position % per_group == 0)
        return [Piece(batch, ends_group=ends_group, ends_window=ends_window)]

    def _ascent_pass(self, passes: Passes, piece: Piece) -> Tensor:
        """The first pass over a piece, at w."""
        if not self._group:
            # What p.grad holds is no part of this group's gradient: earlier groups', or those of a window that an
            # iterable dataset broke off
            overwritten = passes.sync_perturbation and has_bucket_views(passes.model)
            self._accumulated = take_gradients(passes.all_parameters, by_value=overwritten)
            self._note_use(self._accumulated)
        self._group.append(piece)
        if passes.replay_random:
            piece.random = RandomState(passes.random_devices)
        with self._ascent_sync(passes, piece):
            loss = passes.forward_backward(piece, True)
        self._totals.loss = self._totals.loss + loss
        return loss

    def _finish_group(self, passes: Passes) -> None:
        """From the group's ascent gradient to its descent gradient, added to what earlier groups left."""
        pieces, self._group = self._group, []
        with ExitStack() as stack:
            if passes.replay_random:
                stack.callback(RandomState(passes.random_devices).restore)
            perturbation = Perturbation(round_to=self.rounding, keep_epsilon=self.steps > 1)
            stack.callback(perturbation.restore)  # once more, should an interrupt fall into the first
            stack.enter_context(perturbation)
            stack.enter_context(statistics_held(passes.normalisation) if passes.hold_statistics else nullcontext())
            for step in range(self.steps):
                if step > 0:
                    for piece in pieces:
                        piece.replay_random()
                        with self._ascent_sync(passes, piece):
                            passes.forward_backward(piece, False)
                self._perturb(passes, perturbation, first=step == 0)
            give_gradients_back(passes.all_parameters, self._accumulated)
            self._accumulated = {}
            for piece in pieces:
                piece.replay_random()
                with self._descent_sync(passes, piece):
                    loss = passes.forward_backward(piece, False)
                self._totals.perturbed_loss = self._totals.perturbed_loss + loss
        self.perturbation_ratio = perturbation.ratio
        if perturbation.ratio is not None:
            passes.means.add("sam_perturbation_ratio", perturbation.ratio)

    def _perturb(self, passes: Passes, perturbation: Perturbation, first: bool) -> None:
        gradients = take_gradients(passes.all_parameters)
        self._note_use(gradients)
        parameters = [p for p in passes.perturbed if p in gradients]
        assert self.method is not None
        ascent = self.method.ascent(dense([gradients.pop(p) for p in parameters]), parameters)
        if first:
            self._totals.skipped.append(~ascent.finite)
            scale = passes.loss_scale()
            passes.means.add("sam_ascent_grad_norm", ascent.norm if scale is None else ascent.norm / scale)
        perturbation.add(parameters, ascent, self.radius / self.steps)

    def _note_use(self, gradients: dict[Tensor, Tensor]) -> None:
        self._used |= dict.fromkeys(p for p, gradient in gradients.items() if not gradient.is_sparse)

    def _ascent_sync(self, passes: Passes, piece: Piece) -> AbstractContextManager:
        shared = passes.sync_perturbation or is_fsdp(passes.model)
        enabled = shared and (piece.ends_group or passes.sync_each_batch)
        return self._sync(passes, enabled)

    def _descent_sync(self, passes: Passes, piece: Piece) -> AbstractContextManager:
        # FSDP2 keeps gradients that were not reduced where the next group's would be added to them
        boundary = piece.ends_group and is_fsdp(passes.model)
        enabled = piece.ends_window or boundary or passes.sync_each_batch
        return self._sync(passes, enabled)

    def _sync(self, passes: Passes, enabled: bool) -> AbstractContextManager:
        if enabled:
            mark_used(passes.model, self._used)
        return gradient_sync(passes.model, enabled, outer=self.is_complete or passes.sync_each_batch)

    def _report(self, means: RunningMeans) -> None:
        means.add("sam_rho", self.radius)
        skipped = torch.stack(self._totals.skipped)
        means.add("sam_skipped", skipped.double().mean())
        # Where an ascent was skipped the "perturbed" loss is none: leave the update out of both means
        blank = torch.where(skipped.any(), torch.nan, 0.0)
        means.add("sam_perturbed_loss", self._totals.perturbed_loss + blank)
        means.add("sam_sharpness", self._totals.perturbed_loss - self._totals.loss + blank)

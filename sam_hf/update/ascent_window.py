"""
The passes over one accumulation window: which examples share a perturbation, and in which order they are passed over.

Trainer hands its micro-batches over one by one. Each belongs to a *group* of m examples that share one ε. A group's
pieces (whole micro-batches, or slices of one where m is smaller) are passed over at w as they come; with the last of
them, ε is known, the weights move to w + ε, the pieces are passed over again and the weights come back:

    m = None, 3 micro-batches    a₁ │ a₂ │ a₃ +ε d₁ d₂ d₃ −ε
    m = one micro-batch          a₁ +ε d₁ −ε │ a₂ +ε d₂ −ε │ a₃ +ε d₃ −ε
    an ascent fraction of 1/2    a₁ │ a₂′│    +ε d₁ d₂ d₃ −ε

aᵢ: ascent pass (aᵢ′: over some of its examples), dᵢ: descent pass, │: back to Trainer. Descent gradients accumulate in
`p.grad` as plain ones would. A method that combines g and s does so after the window's last pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..methods import Method, Point
from ..tensors.lists import add, copies, divide
from ..tensors.rounding import StochasticRounding
from .combining import combine
from .gradients import (
    dense,
    give_gradients_back,
    gradient_sync,
    has_bucket_views,
    is_fsdp,
    mark_used,
    take_gradients,
    without_gradient,
)
from .groups import GroupSize, Piece, WindowGroups
from .perturbation import Perturbation
from .random_state import RandomState
from .runner import Passes
from .running_means import RunningMeans
from .running_statistics import statistics_held


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
        batches (`Sequence`): the window's micro-batches.
        method ([`~sam_hf.methods.Method`]): what ε is made of, and the update gradient.
        radius (`float` or 0-dimensional `Tensor`): ρ of this update.
        steps (`int`, *optional*, defaults to `1`): ascent steps k, each of radius ρ/k.
        grouping (`GroupSize`): what shares one perturbation.
        fraction (`float`, *optional*, defaults to `1.0`): share of a group's examples with an ascent pass.
        rounding (`StochasticRounding`, *optional*): how w + ε is rounded to bf16 and fp16 weights.

    Attributes:
        perturbation_ratio (`Tensor` or `None`): what rounding left of the last ε, see [`Perturbation`].
    """

    def __init__(
        self,
        batches: Sequence[dict[str, Any]],
        *,
        method: Method,
        radius: float | Tensor,
        steps: int = 1,
        grouping: GroupSize,
        fraction: float = 1.0,
        rounding: StochasticRounding | None = None,
    ):
        self.method = method
        self.radius = radius
        self.steps = steps
        self.rounding = rounding
        self.perturbation_ratio: Tensor | None = None
        self._plan = WindowGroups(batches, grouping, fraction)
        self._share: Tensor | None = None
        self._group: list[Piece] = []
        self._accumulated: dict[Tensor, Tensor] = {}
        self._ascent_gradient: dict[Tensor, Tensor] = {}
        self._leftover: dict[Tensor, Tensor] | None = None
        self._used: dict[Tensor, None] = {}
        self._reduced = False
        self._totals = _Totals()

    @property
    def is_complete(self) -> bool:
        """All micro-batches were passed over."""
        return self._plan.is_complete

    @property
    def slices_batches(self) -> bool:
        """Losses over some of a micro-batch's examples are taken."""
        return self._plan.slices_batches

    def step(self, passes: Passes, batch: dict[str, Any]) -> Tensor:
        """
        Take the next micro-batch, and every pass that it completes.

        Returns:
            `Tensor`: its loss at w, detached, as Trainer's own `training_step` would return it. Of its examples with
            an ascent pass, as if they were all of the group; 0 if it has none.
        """
        pieces = self._plan.pieces(batch)
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
        if self.is_complete:
            if self.method.combines:
                combine(self.method, self._ascent_gradient, self._leftover or {}, passes)
                self._ascent_gradient.clear()
                self._leftover = {}
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

    def _ascent_pass(self, passes: Passes, piece: Piece) -> Tensor:
        """The pass over a piece at w. With an ascent fraction, over some of its examples or none."""
        if not self._group:
            # What p.grad holds is no part of this group's gradient: earlier groups', or those of a window that an
            # iterable dataset broke off
            overwritten = passes.sync_perturbation and has_bucket_views(passes.model)
            self._accumulated = take_gradients(passes.all_parameters, by_value=overwritten)
            self._note_use(self._accumulated)
            if self._leftover is None:  # before the window's first pass
                kept = self._accumulated if self.method.combines else {}
                self._leftover = {parameter: gradient.clone() for parameter, gradient in kept.items()}
            if self._plan.fraction < 1:
                self._share = passes.ascent_share([piece, *self._plan.coming], self._is_shared(passes))
        self._group.append(piece)
        if piece.ascent_inputs is None:
            return passes.means.zero()
        if passes.replay_random:
            piece.random = RandomState(passes.random_devices)
        with self._ascent_context(passes, piece):
            loss = passes.forward_backward(piece.ascent_inputs, piece.micro_batch, piece.ascends_whole)
        if self._share is not None:
            loss = loss / self._share
        self._totals.loss = self._totals.loss + loss
        return loss

    def _finish_group(self, passes: Passes) -> None:
        """From the group's ascent gradient to its descent gradient, added to what earlier groups left."""
        pieces, self._group = self._group, []
        with ExitStack() as stack:
            if passes.replay_random and all(piece.ascends_whole for piece in pieces):
                stack.callback(RandomState(passes.random_devices).restore)
            perturbation = Perturbation(round_to=self.rounding, keep_epsilon=self.steps > 1)
            stack.callback(perturbation.restore)  # once more, should an interrupt fall into the first
            stack.enter_context(perturbation)
            for step in range(self.steps):
                if step > 0:
                    self._ascend_again(passes, pieces)
                self._perturb(passes, perturbation, first=step == 0)
            give_gradients_back(passes.all_parameters, self._accumulated)
            self._accumulated = {}
            for piece in pieces:
                self._descent_pass(passes, piece)
        self.perturbation_ratio = perturbation.ratio
        if perturbation.ratio is not None:
            passes.means.add("sam_perturbation_ratio", perturbation.ratio)

    def _ascend_again(self, passes: Passes, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if piece.ascent_inputs is None:
                continue
            piece.replay_random()
            held = statistics_held(passes.normalisation) if passes.hold_statistics else nullcontext()
            with held, self._ascent_context(passes, piece):
                passes.forward_backward(piece.ascent_inputs, piece.micro_batch, False)

    def _descent_pass(self, passes: Passes, piece: Piece) -> None:
        # Without an ascent pass of its own, a piece goes on with the generators where the one before it left them
        piece.replay_random()
        seen = piece.ascent_inputs is not None
        held = statistics_held(passes.normalisation) if passes.hold_statistics and seen else nullcontext()
        # FSDP2 keeps gradients that were not reduced where the next group's would be added to them
        boundary = piece.ends_group and is_fsdp(passes.model)
        enabled = piece.ends_window or boundary or passes.sync_each_batch
        with held, self._sync(passes, enabled):
            loss = passes.forward_backward(piece.inputs, piece.micro_batch, not piece.ascends_whole)
        self._totals.perturbed_loss = self._totals.perturbed_loss + loss

    def _perturb(self, passes: Passes, perturbation: Perturbation, first: bool) -> None:
        gradients = take_gradients(passes.all_parameters)
        self._note_use(gradients)
        # Without a gradient in this group it is zero: what a method remembers of the parameter still counts
        remembered = {p for tensors in self.method.tensors.values() for p in tensors}
        parameters = [p for p in passes.perturbed if p in gradients or p in remembered]
        grads = dense([gradients.pop(p) if p in gradients else torch.zeros_like(p) for p in parameters])
        if self._share is not None:
            divide(grads, self._share)
        if first and self.method.combines:
            self._keep_ascent_gradient(parameters, grads)
        names = [passes.own_name(p) for p in parameters]
        point = Point(parameters, perturbation.at_w(parameters), names, passes.loss_scale())
        ascent = self.method.ascent(grads, point)
        if first:
            self._totals.skipped.append(~ascent.finite)
            scale = point.loss_scale
            passes.means.add("sam_ascent_grad_norm", ascent.norm if scale is None else ascent.norm / scale)
        perturbation.add(parameters, ascent, self.radius / self.steps)

    def _keep_ascent_gradient(self, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Of all groups together: their losses are parts of the window's."""
        gathered = self._ascent_gradient
        known = {p: grad for p, grad in zip(parameters, grads, strict=True) if p in gathered}
        add([gathered[p] for p in known], list(known.values()))
        new = {p: grad for p, grad in zip(parameters, grads, strict=True) if p not in gathered}
        gathered.update(zip(new, copies(list(new.values())), strict=True))

    def _note_use(self, gradients: dict[Tensor, Tensor]) -> None:
        self._used |= dict.fromkeys(p for p, gradient in gradients.items() if not gradient.is_sparse)

    def _ascent_context(self, passes: Passes, piece: Piece) -> AbstractContextManager:
        stack = ExitStack()
        shared = self._is_shared(passes)
        stack.enter_context(self._sync(passes, shared and (piece.ends_ascent or passes.sync_each_batch)))
        # What takes part in a reduction must have a gradient
        if passes.skip_unperturbed and not shared:
            perturbed = set(passes.perturbed)
            stack.enter_context(without_gradient(p for p in passes.all_parameters if p not in perturbed))
        return stack

    def _is_shared(self, passes: Passes) -> bool:
        """The ascent gradient is a mean over processes."""
        return passes.sync_perturbation or is_fsdp(passes.model)

    def _sync(self, passes: Passes, enabled: bool) -> AbstractContextManager:
        if enabled:
            mark_used(passes.model, [p for p in self._used if self._reduced or p.grad is None])
            self._reduced = True
        outer = self.is_complete or passes.sync_each_batch
        return gradient_sync(passes.model, enabled, outer, passes.gradient_state)

    def _report(self, means: RunningMeans) -> None:
        means.add("sam_rho", self.radius)
        skipped = torch.stack(self._totals.skipped)
        means.add("sam_skipped", skipped.float().mean())
        # Where an ascent was skipped the "perturbed" loss is none: leave the update out of both means
        blank = torch.where(skipped.any(), torch.nan, 0.0)
        means.add("sam_perturbed_loss", self._totals.perturbed_loss + blank)
        if self._plan.fraction == 1:  # else the two are losses of different examples
            means.add("sam_sharpness", self._totals.perturbed_loss - self._totals.loss + blank)

"""
The window of a SAM update: which examples share a perturbation, and the order of the passes over them.

Trainer hands its micro-batches over one by one. Each belongs to a *group* of m examples that share one epsilon. The
pieces of a group are whole micro-batches, or slices of one micro-batch where m is smaller. Each piece gets an ascent
pass at w when it arrives. After the last ascent pass of the group, epsilon is known: the weights move to w + ε, every
piece gets a descent pass there, and the weights are restored:

    m = None, 3 micro-batches    a₁ │ a₂ │ a₃ +ε d₁ d₂ d₃ −ε
    m = one micro-batch          a₁ +ε d₁ −ε │ a₂ +ε d₂ −ε │ a₃ +ε d₃ −ε
    an ascent fraction of 1/2    a₁ │ a₂′│    +ε d₁ d₂ d₃ −ε

aᵢ: ascent pass (aᵢ′: over some of the examples), dᵢ: descent pass, │: return to Trainer. Descent gradients accumulate
in `p.grad` as plain gradients do. A method that combines g and s does so after the last pass of the window.
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
    syncs_each_batch,
    take_gradients,
    without_gradient,
)
from .groups import GroupSize, Piece, WindowGroups
from .perturbation import Perturbation
from .random_state import RandomState
from .runner import PassRunner
from .running_means import RunningMeans
from .running_statistics import statistics_held
from .window import Window

_NO_GRADIENT = (
    "The backward pass left no gradient in the parameters that the optimizer steps, and a perturbation needs it. Some "
    "optimizers have copies of the parameters (master weights), and some move gradients away while they are computed "
    "(offloading). Use another optimizer, or sam_method='none'."
)


@dataclass
class _Totals:
    """Sums over the window, for the metrics of one update."""

    loss: Tensor | float = 0.0
    perturbed_loss: Tensor | float = 0.0
    skipped: list[Tensor] = field(default_factory=list)


class AscentWindow(Window):
    """
    One update with ascent passes at w and descent passes at w + ε.

    Args:
        batches (`Sequence`): the micro-batches of the update.
        method ([`~sam_hf.methods.Method`]): defines epsilon and the update gradient.
        radius (`float` or 0-dimensional `Tensor`): ρ of this update.
        steps (`int`, *optional*, defaults to `1`): ascent steps k, each of radius ρ/k.
        group_size ([`GroupSize`]): how many examples share one perturbation.
        fraction (`float`, *optional*, defaults to `1.0`): share of a group's examples with an ascent pass.
        rounding ([`~sam_hf.tensors.rounding.StochasticRounding`], *optional*): rounds w + ε to bf16 and fp16 weights.
        sync_perturbation (`bool`, *optional*, defaults to `False`): average the ascent gradient over processes.
        replay_random (`bool`, *optional*, defaults to `True`): every pass over the same examples draws the same random
            numbers.
        hold_statistics (`bool`, *optional*, defaults to `True`): running statistics follow the first pass only.
    """

    def __init__(
        self,
        batches: Sequence[dict[str, Any]],
        *,
        method: Method,
        radius: float | Tensor,
        steps: int = 1,
        group_size: GroupSize,
        fraction: float = 1.0,
        rounding: StochasticRounding | None = None,
        sync_perturbation: bool = False,
        replay_random: bool = True,
        hold_statistics: bool = True,
    ):
        super().__init__(batches)
        self._method = method
        self._radius = radius
        self._steps = steps
        self._rounding = rounding
        self._sync_perturbation = sync_perturbation
        self._replay_random = replay_random
        self._hold_statistics = hold_statistics
        self._groups = WindowGroups(batches, group_size, fraction)
        self._share: Tensor | None = None
        self._group: list[Piece] = []
        self._accumulated: dict[Tensor, Tensor] = {}
        self._ascent_gradient: dict[Tensor, Tensor] = {}
        self._leftover: dict[Tensor, Tensor] | None = None
        self._used: dict[Tensor, None] = {}
        self._reduced = False
        self._totals = _Totals()

    def step(self, runner: PassRunner, batch: dict[str, Any]) -> Tensor:
        """
        Take the next micro-batch, and run every pass that it completes.

        Returns:
            `Tensor`: the micro-batch's loss at w, detached, as Trainer's own `training_step` returns it. With an
            ascent fraction it is the loss of the examples with an ascent pass, as if they were the whole group; 0 if
            the micro-batch has none.
        """
        self.position += 1
        pieces = self._groups.pieces(batch)
        if self._groups.slices_batches:
            runner.examine_loss(batch, self._groups.parts(batch))
        start = RandomState(runner.structure.random_devices) if self._replay_random and len(pieces) > 1 else None
        losses = []
        for piece in pieces:
            losses.append(self._ascent_pass(runner, piece))
            if piece.ends_group:
                self._finish_group(runner)
        if start is not None and RandomState(runner.structure.random_devices) != start:
            # Slices draw other random numbers than the whole micro-batch; what follows must not depend on m
            start.restore()
            with statistics_held(runner.structure.normalisation):
                runner.advance_random(batch)
        if self.is_complete:
            if self._method.combines:
                gradients = self._ascent_gradient, self._leftover or {}
                combine(self._method, *gradients, runner, averaged=self._is_averaged(runner))
                self._ascent_gradient.clear()
                self._leftover = {}
            self._report(runner.means)
        return torch.stack(losses).sum() if len(losses) > 1 else losses[0]

    def abandon(self) -> None:
        for parameter, gradient in self._accumulated.items():
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        self._accumulated = {}

    def _ascent_pass(self, runner: PassRunner, piece: Piece) -> Tensor:
        """Run the pass over a piece at w. With an ascent fraction, it covers some of the examples or none."""
        if not self._group:
            # The gradients in p.grad do not belong to this group: earlier groups left them, or a window that an
            # iterable dataset broke off
            overwritten = self._sync_perturbation and has_bucket_views(runner.model)
            self._accumulated = take_gradients(runner.parameters, by_value=overwritten)
            self._note_use(self._accumulated)
            if self._leftover is None:  # before the window's first pass
                before = self._accumulated if self._method.combines else {}
                self._leftover = {parameter: gradient.clone() for parameter, gradient in before.items()}
            if self._groups.fraction < 1:
                self._share = runner.ascent_share([piece, *self._groups.coming], self._is_averaged(runner))
        self._group.append(piece)
        if piece.ascent_inputs is None:
            return runner.means.zero()
        if self._replay_random:
            piece.random = RandomState(runner.structure.random_devices)
        with self._ascent_context(runner, piece):
            loss = runner.forward_backward(piece.ascent_inputs, piece.micro_batch, piece.ascends_whole)
        if self._share is not None:
            loss = loss / self._share
        self._totals.loss = self._totals.loss + loss
        return loss

    def _finish_group(self, runner: PassRunner) -> None:
        """Go from the group's ascent gradient to its descent gradient, added to the gradients of earlier groups."""
        pieces, self._group = self._group, []
        with ExitStack() as stack:
            if self._replay_random and all(piece.ascends_whole for piece in pieces):
                stack.callback(RandomState(runner.structure.random_devices).restore)
            perturbation = Perturbation(round_to=self._rounding, keep_epsilon=self._steps > 1)
            stack.callback(perturbation.restore)  # a second time, in case an interrupt falls into the first
            stack.enter_context(perturbation)
            for step in range(self._steps):
                if step > 0:
                    self._ascend_again(runner, pieces)
                self._perturb(runner, perturbation, first=step == 0)
            give_gradients_back(runner.parameters, self._accumulated)
            self._accumulated = {}
            for piece in pieces:
                self._descent_pass(runner, piece)
        self.perturbation_ratio = perturbation.ratio
        runner.means.add("sam_perturbation_ratio", perturbation.ratio)

    def _ascend_again(self, runner: PassRunner, pieces: Sequence[Piece]) -> None:
        for piece in pieces:
            if piece.ascent_inputs is None:
                continue
            piece.replay_random()
            with self._held_statistics(runner, self._hold_statistics), self._ascent_context(runner, piece):
                runner.forward_backward(piece.ascent_inputs, piece.micro_batch, False)

    def _descent_pass(self, runner: PassRunner, piece: Piece) -> None:
        # A piece without an ascent pass continues with the random numbers where the piece before it stopped
        piece.replay_random()
        seen = piece.ascent_inputs is not None
        # FSDP2 keeps gradients that were not reduced, and would add the next group's gradients to them
        boundary = piece.ends_group and is_fsdp(runner.model)
        enabled = piece.ends_window or boundary or syncs_each_batch(runner.gradient_state)
        with self._held_statistics(runner, self._hold_statistics and seen), self._sync(runner, enabled):
            loss = runner.forward_backward(piece.inputs, piece.micro_batch, not piece.ascends_whole)
        self._totals.perturbed_loss = self._totals.perturbed_loss + loss

    def _perturb(self, runner: PassRunner, perturbation: Perturbation, first: bool) -> None:
        gradients = take_gradients(runner.parameters)
        self._note_use(gradients)
        # A parameter without a gradient in this group has a zero gradient, but the method may remember earlier ones
        remembered = {p for tensors in self._method.tensors.values() for p in tensors}
        parameters = [p for p in runner.perturbed if p in gradients or p in remembered]
        if not parameters and not any(p in gradients for p in runner.stepped):
            raise ValueError(_NO_GRADIENT)
        grads = dense([gradients.pop(p) if p in gradients else torch.zeros_like(p) for p in parameters])
        if self._share is not None:
            divide(grads, self._share)
        if first and self._method.combines:
            self._keep_ascent_gradient(parameters, grads)
        names = [runner.structure.own_name(p) for p in parameters]
        point = Point(parameters, perturbation.at_w(parameters), names, runner.loss_scale())
        ascent = self._method.ascent(grads, point)
        if first:
            self._totals.skipped.append(~ascent.finite)
            scale = point.loss_scale
            runner.means.add("sam_ascent_grad_norm", ascent.norm if scale is None else ascent.norm / scale)
        perturbation.add(parameters, ascent, self._radius / self._steps)

    def _keep_ascent_gradient(self, parameters: Sequence[Tensor], grads: Sequence[Tensor]) -> None:
        """Sum the ascent gradients of all groups: each group's loss is one part of the window's loss."""
        gathered = self._ascent_gradient
        known = {p: grad for p, grad in zip(parameters, grads, strict=True) if p in gathered}
        add([gathered[p] for p in known], list(known.values()))
        new = {p: grad for p, grad in zip(parameters, grads, strict=True) if p not in gathered}
        gathered.update(zip(new, copies(list(new.values())), strict=True))

    def _note_use(self, gradients: dict[Tensor, Tensor]) -> None:
        self._used |= dict.fromkeys(p for p, gradient in gradients.items() if not gradient.is_sparse)

    def _ascent_context(self, runner: PassRunner, piece: Piece) -> AbstractContextManager:
        stack = ExitStack()
        averaged = self._is_averaged(runner)
        enabled = averaged and (piece.ends_ascent or syncs_each_batch(runner.gradient_state))
        stack.enter_context(self._sync(runner, enabled))
        # A parameter that takes part in a reduction must have a gradient. Reentrant checkpointing computes gradients
        # only in layers whose inputs have one
        structure = runner.structure
        if structure.left_out and not structure.checkpoints_reentrantly and not averaged:
            perturbed = set(runner.perturbed)
            stack.enter_context(without_gradient(p for p in runner.parameters if p not in perturbed))
        return stack

    def _is_averaged(self, runner: PassRunner) -> bool:
        """Whether the ascent gradient is a mean over processes."""
        return self._sync_perturbation or is_fsdp(runner.model)

    def _held_statistics(self, runner: PassRunner, held: bool) -> AbstractContextManager:
        return statistics_held(runner.structure.normalisation) if held else nullcontext()

    def _sync(self, runner: PassRunner, enabled: bool) -> AbstractContextManager:
        if enabled:
            mark_used(runner.model, [p for p in self._used if self._reduced or p.grad is None])
            self._reduced = True
        outer = self.is_complete or syncs_each_batch(runner.gradient_state)
        return gradient_sync(runner.model, enabled, outer, runner.gradient_state)

    def _report(self, means: RunningMeans) -> None:
        means.add("sam_rho", self._radius)
        skipped = torch.stack(self._totals.skipped)
        means.add("sam_skipped", skipped.float().mean())
        loss, perturbed = self._totals.loss, self._totals.perturbed_loss
        # A loss at w that is not finite is not in Trainer's mean: leave the update out of this one too
        means.add("sam_perturbed_loss", perturbed + (loss - loss))
        if self._groups.fraction == 1:  # otherwise the two losses are of different examples
            means.add("sam_sharpness", perturbed - loss)

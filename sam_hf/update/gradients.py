"""Gradients set aside and given back, and whether a backward pass reduces them over processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate.state import GradientState
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

try:
    from torch.distributed.fsdp import FSDPModule
except ImportError:  # a torch built without distributed
    FSDPModule = ()  # type: ignore[assignment,misc]


def take_gradients(parameters: Iterable[Tensor], by_value: bool = False) -> dict[Tensor, Tensor]:
    """Set aside the gradients accumulated so far, by reference or value; the next backward pass starts from none."""
    taken = {p: p.grad.clone() if by_value else p.grad for p in parameters if p.grad is not None}
    for parameter in taken:
        parameter.grad = None
    return taken


def give_gradients_back(parameters: Iterable[Tensor], taken: dict[Tensor, Tensor]) -> None:
    """Undo `take_gradients`; what the parameters gathered since is dropped."""
    for parameter in parameters:
        parameter.grad = taken.get(parameter)


def has_bucket_views(model: nn.Module) -> bool:
    """Gradients that were reduced lie in DDP's buckets, which the next reduction overwrites."""
    module = _uncompiled(model)
    return isinstance(module, DistributedDataParallel) and module.gradient_as_bucket_view


def mark_used(model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """
    Add zeros to the gradients of parameters that earlier passes used, before one that reduces them.

    With `find_unused_parameters`, DDP keeps a list of what was used since it last reduced, and leaves other gradients
    alone. A reduction in the middle of a window empties that list, so that what was accumulated before it would stay
    local to each rank; and gradients set aside leave it with parameters without one, which it takes for a bug.
    """
    module = _uncompiled(model)
    if isinstance(module, DistributedDataParallel) and module.find_unused_parameters:
        torch.autograd.backward(parameters, [p.new_zeros(()).expand_as(p) for p in parameters])


@contextmanager
def without_gradient(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Passes inside compute no gradient of these parameters, and skip the products that it would take."""
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def dense(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Sparse gradients (`nn.Embedding(sparse=True)`) as dense tensors: ε is applied to whole weights."""
    return [g.to_dense() if g.is_sparse else g for g in gradients]


def is_fsdp(model: nn.Module) -> bool:
    """Sharded with FSDP2: a gradient exists only once it has been reduced over processes."""
    module = _uncompiled(model)
    # Adapters around a model that transformers sharded while loading: the mark shows through, as do its methods
    return isinstance(module, FSDPModule) or getattr(module, "_is_fsdp_managed_module", False)


@contextmanager
def gradient_sync(
    model: nn.Module, enabled: bool, outer: bool, gradient_state: GradientState | None = None
) -> Iterator[None]:
    """
    Passes inside reduce gradients over processes, or do not, whatever `no_sync` they stand in.

    `no_sync` can only switch the reduction off; a perturbation that is synchronised needs it on in the middle of an
    accumulation window too. Nothing to do for a model in one process.

    Args:
        enabled (`bool`): reduce gradients in the passes inside.
        outer (`bool`): what holds around this scope; FSDP2 has no way to ask.
        gradient_state ([`~accelerate.state.GradientState`], *optional*): Trainer asks it whether to average gradients
            of weights that are replicated beside shards (adapters).
    """
    module = _uncompiled(model)
    if isinstance(module, DistributedDataParallel):
        before, module.require_backward_grad_sync = module.require_backward_grad_sync, enabled
        try:
            yield
        finally:
            module.require_backward_grad_sync = before
    elif is_fsdp(module):
        module.set_requires_gradient_sync(enabled)  # type: ignore[operator]
        before = gradient_state is not None and gradient_state.sync_gradients
        if gradient_state is not None:
            gradient_state._set_sync_gradients(enabled)
        try:
            yield
        finally:
            module.set_requires_gradient_sync(outer)  # type: ignore[operator]
            if gradient_state is not None:
                gradient_state._set_sync_gradients(before)
    else:
        yield


@contextmanager
def no_broadcast(model: nn.Module) -> Iterator[None]:
    """
    Passes inside, which have no backward, take no part in DDP's broadcast of buffers, which is due once an update: a
    rank that makes such a pass alone would wait for the others, and what a pass received is not kept where running
    statistics are held.
    """
    module = _uncompiled(model)
    if not isinstance(module, DistributedDataParallel):
        yield
        return
    due, module.require_forward_param_sync = module.require_forward_param_sync, False
    try:
        yield
    finally:
        module.require_forward_param_sync = due


def _uncompiled(model: nn.Module) -> nn.Module:
    return getattr(model, "_orig_mod", model)

"""Gradients that are set aside and given back, and control over their reduction over processes."""

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
    """Remove and return the accumulated gradients, so that the next backward pass starts from none."""
    taken = {p: p.grad.clone() if by_value else p.grad for p in parameters if p.grad is not None}
    for parameter in taken:
        parameter.grad = None
    return taken


def give_gradients_back(parameters: Iterable[Tensor], taken: dict[Tensor, Tensor]) -> None:
    """Undo `take_gradients`, and drop the gradients that have accumulated since."""
    for parameter in parameters:
        parameter.grad = taken.get(parameter)


def has_bucket_views(model: nn.Module) -> bool:
    """Return whether reduced gradients are views of DDP's buckets, which the next reduction overwrites."""
    module = _without_compile(model)
    return isinstance(module, DistributedDataParallel) and module.gradient_as_bucket_view


def mark_used(model: nn.Module, parameters: Sequence[Tensor]) -> None:
    """
    Add zeros to the gradients of parameters that earlier passes used, before a pass that reduces them.

    With `find_unused_parameters`, DDP lists the parameters that were used since its last reduction, and skips the
    gradients of all others. A reduction in the middle of a window empties this list: gradients accumulated before it
    would stay local to each rank. And DDP takes a listed parameter whose gradient was set aside for a bug.
    """
    module = _without_compile(model)
    if isinstance(module, DistributedDataParallel) and module.find_unused_parameters:
        torch.autograd.backward(parameters, [p.new_zeros(()).expand_as(p) for p in parameters])


@contextmanager
def without_gradient(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Compute no gradients of these parameters in the passes inside. This saves their matrix products."""
    frozen = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(True)


def dense(gradients: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradients with sparse ones (`nn.Embedding(sparse=True)`) made dense: epsilon covers whole weights."""
    return [g.to_dense() if g.is_sparse else g for g in gradients]


def is_fsdp(model: nn.Module) -> bool:
    """Return whether the model is sharded with FSDP2. It then holds a gradient only after a reduction."""
    module = _without_compile(model)
    # Adapters around a model that transformers sharded while loading: its mark and its methods show through
    return isinstance(module, FSDPModule) or getattr(module, "_is_fsdp_managed_module", False)


def reshard(modules: Iterable[nn.Module]) -> None:
    """
    Free the whole weights that a forward pass without a backward pass leaves behind in modules sharded with FSDP2.

    The next pass would use them, although the shards may have changed in the meantime.
    """
    for module in modules:
        if isinstance(module, FSDPModule):
            module.reshard()


def syncs_each_batch(gradient_state: GradientState | None) -> bool:
    """Return whether accelerate's plugin asks for a reduction after every micro-batch (`sync_each_batch`)."""
    return gradient_state is not None and gradient_state.plugin_kwargs.get("sync_each_batch", False)


@contextmanager
def gradient_sync(
    model: nn.Module, enabled: bool, outer: bool, gradient_state: GradientState | None = None
) -> Iterator[None]:
    """
    Reduce the gradients of the passes inside over processes, or do not, regardless of a `no_sync` around this scope.

    `no_sync` can only switch the reduction off. A perturbation that is synchronised also needs it on in the middle of
    an accumulation window. For a model in one process this does nothing.

    Args:
        enabled (`bool`): reduce the gradients of the passes inside.
        outer (`bool`): the setting around this scope, which FSDP2 cannot tell.
        gradient_state ([`~accelerate.state.GradientState`], *optional*): accelerate reads it to decide whether to
            average gradients of weights that are replicated beside shards (adapters). Its setter has no public form.
    """
    module = _without_compile(model)
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
    Keep the passes inside, which have no backward pass, out of DDP's broadcast of buffers.

    The broadcast is due once per update. A rank that runs such a pass alone would wait for the other ranks, and where
    running statistics are held, the received buffers would be lost.
    """
    module = _without_compile(model)
    if not isinstance(module, DistributedDataParallel):
        yield
        return
    due, module.require_forward_param_sync = module.require_forward_param_sync, False
    try:
        yield
    finally:
        module.require_forward_param_sync = due


def _without_compile(model: nn.Module) -> nn.Module:
    """Return the module inside torch.compile's wrapper. accelerate's function for this would remove DDP as well."""
    return getattr(model, "_orig_mod", model)

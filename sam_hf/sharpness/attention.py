"""Attention that can be differentiated twice. Which implementation allows it for a model is found out by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging

from .losses import first_order, graph_nodes, second_order

if TYPE_CHECKING:
    from .oracle import LossOracle

logger = logging.get_logger(__name__)

PRODUCTS = ("auto", "double_backward", "finite_difference")


class Attention(NamedTuple):
    """A way to compute attention in a Hessian-vector product."""

    name: str  # in the log; empty for the model's own
    scope: Callable[[], AbstractContextManager]  # returns a context in which it is used


FINITE_DIFFERENCE = Attention("finite differences", nullcontext)
_OWN = Attention("", nullcontext)
_UNFUSED = Attention("torch's unfused attention kernel", lambda: sdpa_kernel(SDPBackend.MATH))


def describe_product(attention: Attention | None) -> tuple[str, str]:
    """Return how products are computed and with which attention; both are empty if `attention` is `None`."""
    if attention is None:
        return "", ""
    if attention is FINITE_DIFFERENCE:
        return "finite_difference", ""
    return "double_backward", attention.name or "the model's own"


def find_attention(oracle: LossOracle, product: str) -> Attention:
    """
    Try one product on the first batch with each candidate, and return the first one that has second derivatives, or
    `FINITE_DIFFERENCE`. Log the choice unless it is the model's own attention.

    Raises:
        RuntimeError: there is none, and `product` is `"double_backward"`.
    """
    if product == "finite_difference":
        return FINITE_DIFFERENCE
    problems: list[str] = []
    for attention in _candidates(oracle.model):
        problem = _problem_with(attention, oracle)
        # If it fails in one process, no process uses it
        if oracle.over_processes(problem is not None) == 0:
            if attention.name:
                reason = problems[0] if problems else "the model's own attention has no second derivatives"
                logger.warning(f"Hessian-vector products use {attention.name}: {reason}.")
            return attention
        problems.append(problem or "another process failed")
    if product == "double_backward":
        raise RuntimeError(
            f'This model cannot be differentiated twice ({problems[-1]}). Use product="finite_difference".'
        )
    logger.warning(f"Hessian-vector products are central finite differences of gradients: {problems[0]}.")
    return FINITE_DIFFERENCE


def _problem_with(attention: Attention, oracle: LossOracle) -> str | None:
    """Return why the model cannot be differentiated twice with this attention, or `None` if it can."""
    generator = torch.Generator().manual_seed(oracle.seed)
    vector = torch.randn(oracle.dimension, dtype=oracle.dtype, generator=generator).to(oracle.device)
    for batch, _ in oracle.seeded(oracle.batches[:1]):
        with torch.enable_grad(), ExitStack() as stack:
            try:
                stack.enter_context(attention.scope())
            except NotImplementedError as error:
                return str(error)
            loss = oracle.batch_loss(batch)
            is_doubtful = _has_custom_functions(loss)
            try:
                # A custom function may fail while its backward is recorded. If the gradient itself cannot be computed,
                # finite differences fail with the same error later
                gradient = first_order(loss, oracle.weights, create_graph=True)
                product = second_order(gradient, oracle.weights, oracle.split(vector))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                return str(error).strip().splitlines()[0].rstrip(".")
            if is_doubtful:
                return _disagreement(oracle, product, vector)
    return None


def _has_custom_functions(loss: torch.Tensor) -> bool:
    """
    Return whether the loss was computed by an `autograd.Function` in Python or C++ that is not torch's own.

    If such a function is not differentiable twice (`once_differentiable`, kernels called in `backward`), its part of
    the second derivative is missing without an error.
    """
    return any(
        isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in node.name()
        for node in graph_nodes([loss])
    )


def _disagreement(oracle: LossOracle, product: Sequence[torch.Tensor], vector: torch.Tensor) -> str | None:
    """Compare a product with finite differences, and return a problem if it is further away than their own error."""
    expected = oracle.difference(vector, lambda: oracle.gradient_on(oracle.batches[:1]))
    error = float((torch.cat([part.flatten() for part in product]) - expected).norm())
    size = float(expected.norm())
    if error <= oracle.finite_difference_step * size:
        return None
    return (
        "it has a custom autograd.Function whose second derivative is not the derivative of its gradient (relative "
        f"difference {error / max(size, torch.finfo(oracle.dtype).tiny):.1e})"
    )


def _candidates(model: Any) -> list[Attention]:
    """
    Return the model's own attention, the eager implementation of transformers and torch's unfused kernel.

    The model's own attention is left out if it is neither eager nor sdpa: kernels of third parties may be missing in
    the second derivative without an error.
    """
    if not hasattr(model, "set_attn_implementation") or _is_one_of(attention_of(model.config), "eager"):
        return [_OWN, _UNFUSED]
    own = [_OWN] if _is_one_of(attention_of(model.config), "eager", "sdpa") else []
    return [*own, Attention("the eager attention implementation", lambda: _eager_attention(model)), _UNFUSED]


@contextmanager
def _eager_attention(model: Any) -> Iterator[None]:
    """Use transformers' eager implementation in every part of the model, and afterwards the previous one again."""
    before = attention_of(model.config)
    model.set_attn_implementation("eager")
    try:
        if not _is_one_of(attention_of(model.config), "eager"):  # transformers only warns if a model has none
            raise NotImplementedError(f"{type(model).__name__} has no eager attention implementation")
        yield
    finally:
        model.set_attn_implementation(before)


def attention_of(config: Any) -> dict[str, Any]:
    """Return the attention of a config and its sub-configs, in the form that `set_attn_implementation` takes."""
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
    return {"": config._attn_implementation} | {k: attention_of(part) for k, part in parts.items() if part is not None}


def _is_one_of(attention: Any, *allowed: str) -> bool:
    if isinstance(attention, dict):
        return all(_is_one_of(part, *allowed) for part in attention.values())
    return attention is None or attention in allowed

"""Attention that can be differentiated twice: which one a model has, found out by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging

from .derivatives import first_order, second_order

if TYPE_CHECKING:
    from .oracle import LossOracle

logger = logging.get_logger(__name__)

PRODUCTS = ("auto", "double_backward", "finite_difference")


@dataclass(frozen=True)
class Attention:
    """
    How attention is computed within products.

    Attributes:
        name: what the log calls it; empty for the model's own.
        scope: inside it, it is.
    """

    name: str
    scope: Callable[[], AbstractContextManager]


FINITE_DIFFERENCE = Attention("finite differences", nullcontext)
_OWN = Attention("", nullcontext)
_UNFUSED = Attention("torch's unfused attention kernel", lambda: sdpa_kernel(SDPBackend.MATH))


def describe_product(attention: Attention | None) -> tuple[str, str]:
    """How products are taken and with which attention; empty where nothing has been found out yet."""
    if attention is None:
        return "", ""
    if attention is FINITE_DIFFERENCE:
        return "finite_difference", ""
    return "double_backward", attention.name or "the model's own"


def find_attention(oracle: LossOracle, product: str) -> Attention:
    """
    The first way of computing attention that has second derivatives, by one product on the first batch, or
    `FINITE_DIFFERENCE`. Said in the log unless it is the model's own.

    Raises:
        RuntimeError: there is none, and `product` is `"double_backward"`.
    """
    if product == "finite_difference":
        return FINITE_DIFFERENCE
    problems: list[str] = []
    for attention in _candidates(oracle.model):
        problem = _problem(oracle, attention)
        # One process where it fails, and all of them must do without
        if oracle.over_processes(problem is not None) == 0:
            if attention.name:
                logger.warning(f"Hessian-vector products use {attention.name}: {_because(problems)}.")
            return attention
        problems.append(problem or "another process failed")
    if product == "double_backward":
        raise RuntimeError(
            f'This model cannot be differentiated twice ({problems[-1]}). Use product="finite_difference".'
        )
    logger.warning(f"Hessian-vector products are central finite differences of gradients: {_because(problems)}.")
    return FINITE_DIFFERENCE


def _problem(oracle: LossOracle, attention: Attention) -> str | None:
    """What keeps the model from being differentiated twice, or `None`."""
    generator = torch.Generator().manual_seed(oracle.seed)
    vector = torch.randn(oracle.dimension, dtype=oracle.dtype, generator=generator).to(oracle.device)
    for batch, _ in oracle.passes(oracle.batches[:1]):
        with torch.enable_grad(), ExitStack() as stack:
            try:
                stack.enter_context(attention.scope())
            except NotImplementedError as error:
                return str(error)
            value = oracle.value(batch)
            doubtful = _has_functions_of_its_own(value)
            weights = list(oracle.parameters.values())
            try:
                # A function's own backward can refuse to be recorded; one that cannot even run fails in the end too
                gradient = first_order(value, weights, create_graph=True)
                product = second_order(gradient, weights, oracle.split(vector))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                return str(error).strip().splitlines()[0].rstrip(".")
            if doubtful:
                return _disagreement(oracle, product, vector)
    return None


def _has_functions_of_its_own(value: torch.Tensor) -> bool:
    """
    Whether the loss was computed by an `autograd.Function`, Python's or C++'s, other than torch's.

    Where such a one is not differentiable twice (`once_differentiable`, kernels called in `backward`), its part of the
    second derivative is left out without an error.
    """
    seen, ahead = set(), [value.grad_fn]
    while ahead:
        node = ahead.pop()
        if node is None or node in seen:
            continue
        if isinstance(node, torch.autograd.function.BackwardCFunction) or "CppNode" in node.name():
            return True
        seen.add(node)
        ahead += [following for following, _ in node.next_functions]
    return False


def _disagreement(oracle: LossOracle, product: Sequence[torch.Tensor], vector: torch.Tensor) -> str | None:
    """Where exact products are no closer to finite differences than these are exact, they are not used."""
    expected = oracle.difference(vector, lambda: oracle.gradient_on(oracle.batches[:1]))
    found = torch.cat([part.flatten() for part in product])
    error, size = float((found - expected).norm()), float(expected.norm())
    if error <= oracle.step * size:
        return None
    return (
        "it has an autograd.Function of its own, whose second derivative is not that of its gradient (relative "
        f"difference {error / max(size, torch.finfo(oracle.dtype).tiny):.1e})"
    )


def _because(problems: Sequence[str]) -> str:
    return problems[0] if problems else "the model's own attention is a kernel without second derivatives"


def _candidates(model: Any) -> list[Attention]:
    """
    The model's own attention, the eager implementation of transformers, torch's unfused kernel.

    Own ones other than eager and sdpa are not tried: kernels of third parties may drop out of the second derivative
    without an error.
    """
    if not hasattr(model, "set_attn_implementation") or _is_one_of(attention_of(model.config), "eager"):
        return [_OWN, _UNFUSED]
    own = [_OWN] if _is_one_of(attention_of(model.config), "eager", "sdpa") else []
    return [*own, Attention("the eager attention implementation", lambda: eager_attention(model)), _UNFUSED]


@contextmanager
def eager_attention(model: Any) -> Iterator[None]:
    """transformers' eager implementation, in every part of the model, and the one that was afterwards."""
    before = attention_of(model.config)
    model.set_attn_implementation("eager")
    try:
        if not _is_one_of(attention_of(model.config), "eager"):  # transformers only warns where a model cannot
            raise NotImplementedError(f"{type(model).__name__} has no eager attention to change to")
        yield
    finally:
        model.set_attn_implementation(before)


def attention_of(config: Any) -> dict[str, Any]:
    """The attention implementations of a config and those within, as `set_attn_implementation` takes them."""
    parts = {name: getattr(config, name, None) for name in getattr(config, "sub_configs", {})}
    return {"": config._attn_implementation} | {k: attention_of(part) for k, part in parts.items() if part is not None}


def _is_one_of(attention: Any, *allowed: str) -> bool:
    if isinstance(attention, dict):
        return all(_is_one_of(part, *allowed) for part in attention.values())
    return attention is None or attention in allowed

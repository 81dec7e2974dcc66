"""Attention that can be differentiated twice: which one a model has, found out by trying."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers.utils import logging

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
    """What keeps the model from being differentiated twice, or `None`. Errors of first derivatives are raised."""
    for batch, _ in oracle.passes(oracle.batches[:1]):
        with torch.enable_grad(), ExitStack() as stack:
            try:
                stack.enter_context(attention.scope())
            except NotImplementedError as error:
                return str(error)
            gradient = oracle.first_order(batch, create_graph=True)
            try:
                oracle.second_order(gradient, torch.ones(oracle.dimension, dtype=oracle.dtype, device=oracle.device))
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                return str(error).strip().splitlines()[0]
    return None


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

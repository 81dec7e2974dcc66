"""The loss that makes accumulating 4×8 train as one batch of 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

# The labels are classes of tokens: of a tagger's, or the next ones of a decoder's
TOKENS = "tokens"


def loss_function(problem_type: str, label_smoothing: float = 0.0) -> Callable[..., Tensor]:
    """
    A `compute_loss_func` for Trainer: the sum over a micro-batch's labels divided by `num_items_in_batch`, the labels
    of the whole update, or the plain mean where Trainer gives no number.

    Args:
        problem_type (`str`): as in transformers' configurations, or `TOKENS`: one class a token.
        label_smoothing (`float`, *optional*, defaults to `0.0`): used for classes.
    """

    def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        if problem_type == "regression":
            total = F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype), reduction="sum")
        elif problem_type == "multi_label_classification":
            total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        elif problem_type == TOKENS:
            # Padding, and all pieces of a word but its first, have the label −100
            total = F.cross_entropy(
                logits.flatten(0, -2), labels.flatten(), reduction="sum", label_smoothing=label_smoothing
            )
            return total / (num_items_in_batch if num_items_in_batch is not None else (labels != -100).sum())
        else:
            total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
        return total / (num_items_in_batch if num_items_in_batch is not None else labels.numel())

    return compute_loss

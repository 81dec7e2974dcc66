"""The loss with which four accumulated micro-batches of 8 train like one batch of 32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional as F

# The problem type of taggers and decoders: each token has a class as its label
TOKENS = "tokens"


def loss_function(problem_type: str, label_smoothing: float = 0.0) -> Callable[..., Tensor]:
    """
    Return a `compute_loss_func` for Trainer: the sum over the labels of a micro-batch, divided by the number of labels
    in the whole update (`num_items_in_batch`). If Trainer does not give this number, it is the mean.

    Args:
        problem_type (`str`): one of those in transformers' configurations, or `TOKENS`.
        label_smoothing (`float`, *optional*, defaults to `0.0`): label smoothing, used if the labels are classes.
    """

    def compute_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        logits = outputs["logits"] if isinstance(outputs, dict) else outputs[0]
        count: Tensor | int = labels.numel()
        if problem_type == "regression":
            total = F.mse_loss(logits.reshape(labels.shape), labels.to(logits.dtype), reduction="sum")
        elif problem_type == "multi_label_classification":
            total = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="sum")
        else:
            if problem_type == TOKENS:
                # Padding has the label −100, and so has every piece of a word except the first
                logits, labels = logits.flatten(0, -2), labels.flatten()
                count = (labels != -100).sum()
            total = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=label_smoothing)
        return total / (count if num_items_in_batch is None else num_items_in_batch)

    return compute_loss

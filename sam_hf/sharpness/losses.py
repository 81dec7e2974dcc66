"""The loss of one batch, and its derivatives: gradients, Hessian-vector products, and the graphs kept for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..compat import count_items, prepare_inputs
from ..update.gradients import dense

logger = logging.get_logger(__name__)


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """Return the loss that a transformers model computes for a batch with labels."""
    outputs = model(**batch)
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
    if loss is None:
        raise ValueError(
            f"{type(model).__name__} returned no loss for a batch of {', '.join(batch)}. Give batches with labels, or "
            "a `loss`."
        )
    return loss


def trainer_loss(trainer: Any, model: nn.Module, batch: Any) -> Tensor:
    """Return the mean loss of this process's batch from `compute_loss`, called as in Trainer's evaluation."""
    # There is no public way to this loss with its graph: `prediction_step` detaches it
    batch = prepare_inputs(trainer, dict(batch))
    args = trainer.args
    # Otherwise the labels are counted over all processes, which may not have as many batches as this one
    average, args.average_tokens_across_devices = args.average_tokens_across_devices, False
    try:
        items = None if args.n_gpu > 1 else count_items(trainer, batch)
        return trainer.compute_loss(model, batch, num_items_in_batch=items)
    finally:
        args.average_tokens_across_devices = average


def evaluation_loader(trainer: Any, dataset: Any) -> Any:
    """Return a loader of the dataset, batched and collated as in Trainer's evaluation."""
    args = trainer.args
    # With persistent workers Trainer keeps one evaluation loader, and returns it for every dataset
    persistent, args.dataloader_persistent_workers = args.dataloader_persistent_workers, False
    try:
        return trainer.get_eval_dataloader(dataset)
    finally:
        args.dataloader_persistent_workers = persistent


def first_order(loss: Tensor, weights: Sequence[nn.Parameter], create_graph: bool = False) -> list[Tensor]:
    """Return the gradient, one tensor per weight. It is zero where the loss does not depend on the weight."""
    gradient = torch.autograd.grad(loss, weights, create_graph=create_graph, allow_unused=True, materialize_grads=True)
    return dense(gradient)


def second_order(
    gradient: Sequence[Tensor], weights: Sequence[nn.Parameter], vector: Sequence[Tensor], retain_graph: bool = False
) -> Sequence[Tensor]:
    """Return the product of the Hessian and `vector`. `gradient` is what `first_order` returned, with its graph."""
    pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
    if not pairs:  # the loss is linear
        return [torch.zeros_like(weight) for weight in weights]
    products = torch.autograd.grad(
        [g for g, _ in pairs],
        weights,
        [v for _, v in pairs],
        retain_graph=retain_graph,
        allow_unused=True,
        materialize_grads=True,
    )
    return dense(products)


class KeptGraphs:
    """
    The gradients of the first batches with their graphs, ready to be differentiated again. A product with a kept
    gradient needs no forward pass and no first backward pass, which saves about a third of its time.

    Args:
        allowance (`float`): GiB that the graphs may take; 0 keeps none.
    """

    def __init__(self, allowance: float):
        if not allowance >= 0:
            raise ValueError(f"graph_memory={allowance} is not allowed: it must be a number of GiB >= 0")
        self.allowance = allowance
        self.bytes = 0
        self._kept: dict[int, list[Tensor]] = {}
        self._versions: list[int] = []
        self._is_full = allowance == 0

    def gradient(
        self, index: int, weights: Sequence[nn.Parameter], loss: Callable[[], Tensor]
    ) -> tuple[list[Tensor], bool]:
        """Return the gradient of `loss` on batch `index`, computed only if not kept, and whether its graph is kept."""
        versions = [weight._version for weight in weights]
        if versions != self._versions:  # the weights have changed, so the graphs are out of date
            self.clear()
            self._versions = versions
        if index in self._kept:
            return self._kept[index], True
        gradient = first_order(loss(), weights, create_graph=True)
        if self._is_full:
            return gradient, False
        size = _graph_bytes(gradient)
        if self.bytes + size > self.allowance * 2**30:
            self._is_full = True
            logger.info(f"Keeping the graphs of {len(self._kept)} batches, {self.bytes / 2**30:.2f} GiB.")
            return gradient, False
        self._kept[index] = gradient
        self.bytes += size
        return gradient, True

    def clear(self) -> None:
        self._kept.clear()
        self.bytes, self._is_full = 0, self.allowance == 0


def graph_nodes(tensors: Iterable[Tensor]) -> Iterator[Any]:
    """Yield every node of the autograd graph behind the tensors, each once."""
    seen, pending = set(), [tensor.grad_fn for tensor in tensors]
    while pending:
        node = pending.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            pending += [next_node for next_node, _ in node.next_functions]


def _graph_bytes(gradient: Sequence[Tensor]) -> int:
    """Return the memory of the tensors that a gradient and its graph hold, without the weights themselves."""
    storages = {}
    for tensor in _held_tensors(gradient):
        if not (tensor.is_leaf and tensor.requires_grad):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def _held_tensors(gradient: Sequence[Tensor]) -> Iterator[Tensor]:
    yield from gradient
    for node in graph_nodes(gradient):
        for name in dir(node):
            # Torch's notes on autograd document this prefix: it marks what a node saved for its backward pass
            if name.startswith("_saved_"):
                saved = getattr(node, name)
                saved = saved if isinstance(saved, (list, tuple)) else [saved]
                yield from (tensor for tensor in saved if isinstance(tensor, Tensor))

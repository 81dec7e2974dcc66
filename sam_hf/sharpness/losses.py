"""The loss of one batch, as the model returns it or as Trainer computes it, and Trainer's evaluation batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


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
    # Trainer's own evaluation calls these two private methods. There is no public way to this loss with its graph:
    # `prediction_step` detaches it, and SAMMixin begins an update in `get_batch_samples`, which counts the labels
    batch = trainer._prepare_inputs(dict(batch))
    args = trainer.args
    # Otherwise the labels are counted over all processes, which may not have as many batches as this one
    average, args.average_tokens_across_devices = args.average_tokens_across_devices, False
    try:
        items = None if args.n_gpu > 1 else trainer._get_num_items_in_batch([batch], args.device)
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

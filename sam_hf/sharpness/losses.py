"""The loss of one batch: what the model returns, or what Trainer makes of it. And Trainer's batches."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn


def model_loss(model: nn.Module, batch: Any) -> Tensor:
    """The loss that a model of transformers returns for a batch with labels."""
    outputs = model(**batch)
    loss = outputs.get("loss") if isinstance(outputs, dict) else outputs[0]
    if loss is None:
        raise ValueError(
            f"{type(model).__name__} returned no loss for a batch of {', '.join(batch)}. Give batches with labels, or "
            "a `loss`."
        )
    return loss


def trainer_loss(trainer: Any, model: nn.Module, batch: Any) -> Tensor:
    """`compute_loss` as Trainer's evaluation calls it, for a mean over this process's batch."""
    batch = trainer._prepare_inputs(dict(batch))
    args = trainer.args
    # Numbers of labels are counted over processes otherwise, which may not have as many batches as this one
    average, args.average_tokens_across_devices = args.average_tokens_across_devices, False
    try:
        items = None if args.n_gpu > 1 else trainer._get_num_items_in_batch([batch], args.device)
        return trainer.compute_loss(model, batch, num_items_in_batch=items)
    finally:
        args.average_tokens_across_devices = average


def evaluation_loader(trainer: Any, dataset: Any) -> Any:
    """The dataset batched and collated as for Trainer's evaluation."""
    args = trainer.args
    # Trainer keeps one evaluation loader whose workers persist, and returns it for whichever dataset is asked for
    persistent, args.dataloader_persistent_workers = args.dataloader_persistent_workers, False
    try:
        return trainer.get_eval_dataloader(dataset)
    finally:
        args.dataloader_persistent_workers = persistent

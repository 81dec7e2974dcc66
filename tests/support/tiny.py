"""Seeded tiny models, data sets and trainers that the tests of the core share."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainerCallback

from sam_hf import SAMTrainer, SAMTrainingArguments

LENGTH = 6
VOCABULARY = 24
LABELS = 3


def bert(dropout: float = 0.0, dtype: torch.dtype = torch.float64, **config: Any) -> BertForSequenceClassification:
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "max_position_embeddings": LENGTH,
        "num_labels": LABELS,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
        # Far from the tiny default: gradients of every layer count
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    return BertForSequenceClassification(BertConfig(**(settings | config))).to(dtype)


class Perceptron(nn.Module):
    """Two layers that return the mean cross entropy; `accepts_loss_kwargs` tells Trainer to divide it."""

    accepts_loss_kwargs = False

    def __init__(self, middle: nn.Module | None = None, dropout: float = 0.0):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.middle = nn.Identity() if middle is None else middle
        self.dropout = nn.Dropout(dropout)
        self.second = nn.Linear(6, LABELS)

    def forward(self, x, labels=None):
        logits = self.second(self.dropout(torch.tanh(self.middle(self.first(x)))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits}


def perceptron(middle: Callable[[], nn.Module] | None = None, dropout: float = 0.0) -> Perceptron:
    torch.manual_seed(0)
    return Perceptron(None if middle is None else middle(), dropout).double()


def sentences(size: int) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    words = torch.randint(1, VOCABULARY, (size, LENGTH), generator=generator)
    labels = torch.randint(0, LABELS, (size,), generator=generator)
    return [
        {"input_ids": a, "attention_mask": torch.ones_like(a), "labels": b} for a, b in zip(words, labels, strict=True)
    ]


def points(size: int, dtype: torch.dtype = torch.float64) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, LABELS, (size,), generator=generator)
    return [{"x": a, "labels": b} for a, b in zip(x, labels, strict=True)]


def summed_cross_entropy(outputs, labels, num_items_in_batch=None):
    """A loss that is normalised over the whole window."""
    logits = outputs["logits"]
    total = nn.functional.cross_entropy(logits, labels, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def arguments(output_dir, **changes: Any) -> SAMTrainingArguments:
    settings: dict[str, Any] = {
        "use_cpu": True,
        # A test knows every window
        "train_sampling_strategy": "sequential",
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "learning_rate": 0.05,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    if "sam_rho" not in changes and changes.get("sam_method") not in ("none", "nbar"):
        settings["sam_rho_schedule"] = "constant"  # a perturbation in every update, the first one too
    return SAMTrainingArguments(str(output_dir), **(settings | changes))


def trainer_of(
    model,
    data,
    output_dir,
    trainer_class=SAMTrainer,
    callbacks=(),
    compute_loss_func=None,
    eval_dataset=None,
    **changes,
):
    return trainer_class(
        model=model,
        args=arguments(output_dir, **changes),
        train_dataset=data,
        eval_dataset=eval_dataset,
        callbacks=list(callbacks),
        compute_loss_func=compute_loss_func,
    )


def trained(model, data, output_dir, **options) -> Trainer:
    trainer = trainer_of(model, data, output_dir, **options)
    trainer.train()
    return trainer


def snapshot(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Bit for bit."""
    assert actual.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(actual[name], expected[name])]
    assert not different


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


def relative_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def windows_of(data: Sequence[Any], batch_size: int, accumulation: int, updates: int) -> list[list[list[Any]]]:
    """The windows of micro-batches that Trainer makes of `data` in order, epoch after epoch."""
    windows: list[list[list[Any]]] = []
    while len(windows) < updates:
        batches = [list(data[i : i + batch_size]) for i in range(0, len(data), batch_size)]
        windows += [batches[i : i + accumulation] for i in range(0, len(batches), accumulation)]
    return windows[:updates]


def loss_of(model: nn.Module) -> Callable[[torch.Tensor, dict[str, Any]], torch.Tensor]:
    """`(w, example)` → the example's loss, of a copy of the model whose weights are the flat vector w."""
    model = copy.deepcopy(model).train()
    shapes = [(name, p.shape) for name, p in model.named_parameters()]

    def loss(w: torch.Tensor, example: dict[str, Any]) -> torch.Tensor:
        parts = w.split([shape.numel() for _, shape in shapes])
        weights = {name: part.view(shape) for (name, shape), part in zip(shapes, parts, strict=True)}
        batch = {key: value.unsqueeze(0) for key, value in example.items()}
        return torch.func.functional_call(model, weights, (), batch)["loss"]

    return loss


class Watch(TrainerCallback):
    """Calls `check(event, model)` at every event after an update began."""

    EVENTS = ("on_step_begin", "on_pre_optimizer_step", "on_step_end", "on_evaluate", "on_save")

    def __init__(self, check: Callable[[str, nn.Module], None]):
        for event in self.EVENTS:
            setattr(self, event, lambda *_, event=event, model=None, **__: check(event, model))

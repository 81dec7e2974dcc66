"""Cases in which replicas differ in their data, in the parameters that they use, or in what is not finite."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

MICRO_BATCH = 4
# Regression uses `extra` for examples whose first feature is above this value
FAR = 1.8


class Regression(nn.Module):
    """
    A mean squared error in float64.

    Args:
        parts: `"extra"` is a layer that only micro-batches with far examples use; `"unused"` is one that no pass
            reaches; `"norm"` is BatchNorm followed by random numbers that change nothing; `"routed"` is a layer that
            some weights use: a pass at w may use it when the pass at w + ε does not.
    """

    def __init__(self, parts: tuple[str, ...] = ()):
        super().__init__()
        self.first = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7) if "norm" in parts else nn.Identity()
        self.draws = "norm" in parts
        self.routed = nn.Linear(7, 1) if "routed" in parts else None
        self.second = nn.Linear(7, 1)
        self.extra = nn.Linear(7, 1) if "extra" in parts else None
        self.unused = nn.Linear(3, 3) if "unused" in parts else None

    def forward(self, x, labels=None):
        hidden = torch.tanh(self.norm(self.first(x)))
        if self.draws and self.training:
            torch.rand_like(hidden)  # like dropout, but the reference does not need the same numbers
        prediction = self.second(hidden)
        if self.extra is not None and (x[:, 0] > FAR).any():
            prediction = prediction + self.extra(hidden)
        if self.routed is not None and int(self.first.bias[0] * 250) % 2 == 0:
            prediction = prediction + self.routed(hidden)
        return {"loss": nn.functional.mse_loss(prediction.squeeze(-1), labels)}


def make_model(parts: tuple[str, ...] = ()) -> Regression:
    torch.manual_seed(0)
    return Regression(parts).double()


def dataset(size: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    y = torch.randn(size, generator=generator, dtype=torch.float64)
    return [{"x": a, "labels": b} for a, b in zip(x, y, strict=True)]


class Tagger(nn.Module):
    """
    A summed cross entropy over the labels that are not −100.

    Args:
        communicates: each pass communicates between ranks, like losses with examples of other devices. A rank that
            makes a pass alone waits forever.
    """

    accepts_loss_kwargs = True

    def __init__(self, communicates: bool):
        super().__init__()
        self.layer = nn.Linear(5, 3)
        self.communicates = communicates

    def forward(self, x, labels=None, num_items_in_batch=None):
        total = nn.functional.cross_entropy(self.layer(x), labels, ignore_index=-100, reduction="sum")
        ranks = torch.ones(())
        if self.communicates:
            torch.distributed.all_reduce(ranks, op=torch.distributed.ReduceOp.MAX)
        return {"loss": total / num_items_in_batch * ranks}


def make_tagger(communicates: bool) -> Tagger:
    torch.manual_seed(0)
    return Tagger(communicates).double()


def tagged(unlabelled: int, size: int) -> list[dict[str, torch.Tensor]]:
    """Return examples of which the first `unlabelled` have no label."""
    labels = torch.randint(0, 3, (size,), generator=torch.Generator().manual_seed(1))
    labels[:unlabelled] = -100
    return [{"x": row["x"], "labels": label} for row, label in zip(dataset(size), labels, strict=True)]


@dataclass
class Case:
    """
    Attributes:
        arguments: fields of SAMTrainingArguments.
        parts: those of [`Regression`].
        bucket_views: gradients live in DDP's buckets.
        not_finite: passes (of update 1, rank 1) whose loss is NaN; 0 is the ascent pass.
        exact: gradient descent in one process over the data of the ranks must give the same weights.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] = ()
    examples: int = 64
    bucket_views: bool = False
    not_finite: tuple[int, ...] = ()
    exact: bool = True

    @property
    def accumulation(self) -> int:
        return self.arguments.get("gradient_accumulation_steps", 1)

    @property
    def m(self) -> int | None:
        return self.arguments.get("sam_m")

    @property
    def synchronised(self) -> bool:
        return self.arguments.get("sam_sync_perturbation", False)


ACCUMULATED = {"gradient_accumulation_steps": 3}
SHARED = {"sam_sync_perturbation": True}
OWN_GROUPS = {"sam_m": MICRO_BATCH}
SLICES = {"sam_m": 2}
EVERY_BATCH = {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}}
UNEVEN = {"accelerator_config": {"even_batches": False}}
FIND_UNUSED = {"ddp_find_unused_parameters": True}  # Trainer's default
ALL_USED = {"ddp_find_unused_parameters": False}  # lets DDP rebuild its buckets after the first reduction
UNUSED = ("extra", "unused")

# The first micro-batch of rank 0 cannot tell whether the loss is a mean
LABELS_ON_ONE_RANK = Case({"gradient_accumulation_steps": 2, **SLICES})
# The ascent examples of rank 0 have fewer labels than those of rank 1, at first none
UNLIKE_SHARES = Case({"gradient_accumulation_steps": 2, "sam_ascent_fraction": 0.5, "sam_method": "wsam", **SHARED})

CASES = {
    # 21 examples make five micro-batches of 4 and one of 1, which accelerate completes with the first examples
    "uneven": Case({"gradient_accumulation_steps": 2}, examples=21),
    "uneven, dropped": Case({"gradient_accumulation_steps": 2, "dataloader_drop_last": True}, examples=21),
    "uneven, slices": Case({**ACCUMULATED, **SLICES, **UNEVEN}, examples=30),
    "uneven, synchronised": Case({**ACCUMULATED, **SHARED, **OWN_GROUPS, **UNEVEN}, examples=30),
    "unused": Case({**ACCUMULATED, **FIND_UNUSED}, UNUSED),
    "unused, synchronised": Case({**ACCUMULATED, **FIND_UNUSED, **SHARED}, UNUSED),
    "unused, m = micro-batch": Case({**ACCUMULATED, **FIND_UNUSED, **OWN_GROUPS, **SHARED}, UNUSED),
    "unused, bucket views": Case({**ACCUMULATED, **FIND_UNUSED, **OWN_GROUPS, **SHARED}, UNUSED, bucket_views=True),
    "unused, routed": Case(FIND_UNUSED, ("routed",)),
    "unused, routed, synchronised": Case({**ACCUMULATED, **FIND_UNUSED, **SLICES, **SHARED}, ("routed",)),
    "bucket views": Case({**ACCUMULATED, **OWN_GROUPS}, bucket_views=True),
    "bucket views, slices": Case({**ALL_USED, **ACCUMULATED, **SLICES, **SHARED}, bucket_views=True),
    "bucket views, each batch": Case({**ACCUMULATED, **OWN_GROUPS, **EVERY_BATCH}, bucket_views=True),
    "bucket views, each batch, synchronised": Case(
        {**ALL_USED, **ACCUMULATED, **OWN_GROUPS, **EVERY_BATCH, **SHARED}, bucket_views=True
    ),
    "each batch, two steps": Case({**ALL_USED, **ACCUMULATED, **EVERY_BATCH, **SHARED, "sam_ascent_steps": 2}),
    "compiled": Case({**ACCUMULATED, **OWN_GROUPS, "torch_compile": True, "torch_compile_backend": "eager"}),
    "static graph": Case({"ddp_static_graph": True, **ALL_USED, **SHARED}),
    "statistics": Case(ACCUMULATED, ("norm",)),
    "statistics, synchronised": Case({**ACCUMULATED, **SHARED, **OWN_GROUPS}, ("norm",)),
    "statistics, slices": Case({**ALL_USED, **ACCUMULATED, **SLICES}, ("norm",)),
    "NaN in the ascent": Case(not_finite=(0,)),
    "NaN in the ascent, synchronised": Case(SHARED, not_finite=(0,)),
    "NaN in all passes": Case(not_finite=(0, 1), exact=False),
}

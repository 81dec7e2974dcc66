"""
SAM as it is used without sam_hf, for comparing its cost.

`TwoStepSAM` is a new implementation of the algorithm of github.com/davda54/sam: an optimizer around the base optimizer
with two steps, which the user calls after two backward passes. Like the original, it loops over parameters and keeps
the weights in its state. Do not train with any of these: gradients of earlier micro-batches are lost, and if fp16's
scaler skips a step, the weights stay perturbed.
"""

from __future__ import annotations

from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import Trainer, get_scheduler

RHO = 0.05


class TwoStepSAM(Optimizer):
    """
    An optimizer that perturbs the weights in its first step and updates them in its second.

    Args:
        groups: parameter groups.
        base_class: the optimizer that steps from w.
        **options: arguments of `base_class`.
    """

    def __init__(self, groups: list[dict[str, Any]], base_class: type[Optimizer], **options: Any):
        super().__init__(groups, {"rho": RHO, **options})
        self.base = base_class(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """Move the weights to w + ρ g/‖g‖."""
        norms = [p.grad.norm(p=2) for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack(norms).norm(p=2)
        for group in self.param_groups:
            scale = group["rho"] / (norm + 1e-12)
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["weights"] = p.detach().clone()
                    p.add_(p.grad * scale.to(p))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """Restore w, and step with the base optimizer along the second gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["weights"]
        self.base.step()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # accelerate calls this when it wraps an optimizer; schedulers then change the groups that it creates
        super().load_state_dict(state_dict)
        self.base.param_groups = self.param_groups


def pytorch_optimizer_sam(groups: list[dict[str, Any]], base_class: type[Optimizer], **options: Any) -> Optimizer:
    """Return SAM of the package pytorch_optimizer, with `step`, which loops and Trainer call, as its second step."""
    from pytorch_optimizer import SAM

    class SteppedSAM(SAM):
        def step(self, closure: Any = None) -> None:
            self.second_step()

    return SteppedSAM(groups, base_class, rho=RHO, **options)


RIVALS = {"davda54": TwoStepSAM, "pytorch_optimizer": pytorch_optimizer_sam}


def missing(rival: str) -> bool:
    return rival == "pytorch_optimizer" and find_spec("pytorch_optimizer") is None


class TwoPassTrainer(Trainer):
    """
    Trainer with a rival's optimizer and two explicit passes in `training_step`.

    Args:
        rival (`str`): a name in `RIVALS`.
    """

    def __init__(self, *args: Any, rival: str, **kwargs: Any):
        self._rival = RIVALS[rival]
        super().__init__(*args, **kwargs)

    def create_optimizer(self, *args: Any, **kwargs: Any) -> Optimizer:
        plain = super().create_optimizer(*args, **kwargs)
        base_class, options = Trainer.get_optimizer_cls_and_kwargs(self.args, self.model)
        groups = [{key: group[key] for key in ("params", "weight_decay")} for group in plain.param_groups]
        self.optimizer = self._rival(groups, base_class, **options)
        return self.optimizer

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
        loss = super().training_step(model, dict(inputs), *args, **kwargs)
        self.optimizer.optimizer.first_step(zero_grad=True)  # accelerate has wrapped it
        super().training_step(model, dict(inputs), *args, **kwargs)
        return loss


class HandWrittenLoop:
    """
    The loop in the README of davda54/sam, with Trainer's defaults: autocast, clipping and a linear schedule.

    Args:
        trainer ([`TwoPassTrainer`]): provides the model, the optimizer and the batches; it does not train itself.
        timer: its `begin` and `end` are called at each update.
    """

    def __init__(self, trainer: TwoPassTrainer, timer: Any):
        self._trainer, self._timer = trainer, timer

    def train(self) -> None:
        args, model = self._trainer.args, self._trainer.model
        optimizer = self._trainer.create_optimizer()
        schedule = get_scheduler("linear", optimizer, 0, args.max_steps)
        scaler = torch.amp.GradScaler(args.device.type, enabled=args.fp16)
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
        batches = iter(self._trainer.get_train_dataloader())

        def backward(batch: dict[str, Any]) -> Tensor:
            with nullcontext() if dtype is None else torch.autocast(args.device.type, dtype):
                loss = model(**batch).loss
            scaler.scale(loss).backward()
            return loss.detach()

        model.train()
        total = torch.zeros((), device=args.device)
        for update in range(args.max_steps):
            self._timer.begin(update)
            batch = {name: tensor.to(args.device, non_blocking=True) for name, tensor in next(batches).items()}
            total += backward(batch)
            optimizer.first_step(zero_grad=True)
            backward(batch)
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), args.max_grad_norm)
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            optimizer.zero_grad()
            self._timer.end(update + 1)

"""Runs the windows of `fsdp2_window_cases` over a model that `fully_shard` shards over two gloo ranks."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fsdp2_window_cases import ACCUMULATION, CASES, MICRO_BATCH, SAVED_AFTER, Case, make_model, windows
from loop_runner import LoopRunner
from ranks import leave
from replicas import RHO
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.fsdp import fully_shard

from sam_hf.methods import METHODS
from sam_hf.update.ascent_window import AscentWindow
from sam_hf.update.groups import GroupSize


def sharded(model: nn.Module) -> nn.Module:
    mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model.layers:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def whole(tensors) -> torch.Tensor:
    return torch.cat([t.detach().full_tensor().flatten() for t in tensors])


def shards(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().to_local().clone() for p in model.parameters()]


class Loop:
    """Does what Trainer does around a window, one update at a time."""

    def __init__(self, case: Case, model: nn.Module):
        self.case = case
        self.model = sharded(model)
        self.optimizer = case.make_optimizer(self.model)
        self.gradients: list[torch.Tensor] = []
        self.weights: list[torch.Tensor] = []
        self.restored: list[bool] = []
        self.left_as_found: list[bool] = []
        self._set_sync = self.model.set_requires_gradient_sync
        self.model.set_requires_gradient_sync = self._record_sync

    def _record_sync(self, enabled: bool) -> None:
        self._set_sync(enabled)
        self.synchronising = enabled

    def forward_backward(self, inputs: dict, micro_batch: dict) -> torch.Tensor:
        share = len(inputs["labels"]) / len(micro_batch["labels"])
        loss = self.model(**inputs)["loss"] * share / ACCUMULATION
        loss.backward()
        return loss.detach()

    def update(self, batches: list[dict[str, torch.Tensor]]) -> None:
        parameters = list(self.model.parameters())
        runner = LoopRunner(self.model, self.forward_backward)
        size = GroupSize.of(self.case.m, MICRO_BATCH)
        window = AscentWindow(batches, method=METHODS["sam"](), radius=RHO, steps=self.case.steps, group_size=size)
        before = shards(self.model)
        for i, batch in enumerate(batches):
            last = i == ACCUMULATION - 1
            self._record_sync(last)
            window.step(runner, batch)
            self.left_as_found.append(self.synchronising == last)
            self.restored.append(all(map(torch.equal, before, shards(self.model))))
        self.gradients.append(whole(p.grad for p in parameters))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.weights.append(whole(parameters))


def save(loop: Loop, folder: Path) -> None:
    model, optimizer = get_state_dict(loop.model, loop.optimizer)
    dcp.save({"model": model, "optimizer": optimizer}, checkpoint_id=folder)


def resumed(case: Case, folder: Path) -> Loop:
    loop = Loop(case, make_model().apply(lambda module: [p.data.zero_() for p in module.parameters()]))
    model, optimizer = get_state_dict(loop.model, loop.optimizer)
    dcp.load({"model": model, "optimizer": optimizer}, checkpoint_id=folder)
    set_state_dict(loop.model, loop.optimizer, model_state_dict=model, optim_state_dict=optimizer)
    return loop


def run(name: str, case: Case, out: Path) -> None:
    rank = dist.get_rank()
    loop = Loop(case, make_model())
    for i, window in enumerate(windows()):
        if i == SAVED_AFTER:
            save(loop, out / name)
        loop.update(window[rank])
    again = resumed(case, out / name)
    for window in windows()[SAVED_AFTER:]:
        again.update(window[rank])
    result = {
        "gradients": torch.stack(loop.gradients),
        "weights": torch.stack(loop.weights),
        "resumed": torch.stack(again.weights),
        "restored": loop.restored,
        "left_as_found": loop.left_as_found,
    }
    torch.save(result, out / f"{name}-{rank}.pt")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for case_name, each in CASES.items():
        run(case_name, each, Path(sys.argv[1]))
    leave()

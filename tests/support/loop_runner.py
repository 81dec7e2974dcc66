"""A runner of passes for training loops that a test writes itself, without Trainer."""

from __future__ import annotations

import torch
from torch import nn

from sam_hf.update.model_structure import ModelStructure
from sam_hf.update.runner import PassRunner
from sam_hf.update.running_means import RunningMeans


class LoopRunner(PassRunner):
    """
    Args:
        model: the model of the loop.
        forward_backward: `(inputs, micro_batch)` → the loss; adds to `p.grad`.
        share: what `ascent_share` returns.
        scale: what `loss_scale` returns.
    """

    def __init__(self, model: nn.Module, forward_backward, share=None, scale=None):
        self.means = RunningMeans(torch.device("cpu"))
        self._model, self._structure = model, ModelStructure(model, torch.device("cpu"))
        self._forward_backward, self._share, self._scale = forward_backward, share, scale

    @property
    def model(self):
        return self._model

    @property
    def structure(self):
        return self._structure

    @property
    def parameters(self):
        return list(self._model.parameters())

    perturbed = parameters

    def plain_step(self, batch):
        return self._forward_backward(batch, batch)

    def forward_backward(self, inputs, micro_batch, counted):
        return self._forward_backward(inputs, micro_batch)

    def advance_random(self, batch):
        """The losses of these loops draw no random numbers."""

    def examine_loss(self, batch, parts):
        """The losses of these loops are weighted by `forward_backward`."""

    def ascent_share(self, pieces, averaged):
        return torch.ones(()) if self._share is None else self._share

    def loss_scale(self):
        return self._scale

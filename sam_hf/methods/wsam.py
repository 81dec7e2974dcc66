from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..tensors.lists import CHUNK_ELEMENTS, add, cast, copies, local, local_chunks, replace_if
from ._averages import unscaled
from ._base import Cost, Option, Point, Products
from ._combination import add_scaled
from ._direction import clear_if_not_finite
from .sam import SAM


class WSAM(SAM):
    r"""
    WSAM (Yue, Jiang, Ye, Gao, Liu, Zhang: "Sharpness-Aware Minimization Revisited: Weighted Sharpness as a
    Regularization Term", KDD 2023, arXiv 2305.15817).

        u = g + γ/(1−γ) (s − g)

    Sharpness is a regulariser with the weight γ/(1−γ). γ = 0.5 is SAM, and a smaller γ is closer to plain training.
    This is the coupled form. With `"decouple": true` (the paper's own form) the optimizer steps with g, and then
    w ← w − lr · γ/(1−γ) (s − g), so that its moments do not contain the sharpness. Default γ: 0.9; ρ as in SAM.
    """

    name = "wsam"
    title = "Weighted SAM"
    paper = "https://arxiv.org/abs/2305.15817"
    citation = """@inproceedings{yue2023sharpness,
  title={Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term},
  author={Yun Yue and Jiadi Jiang and Zhiling Ye and Ning Gao and Yongchao Liu and Ke Zhang},
  booktitle={ACM SIGKDD Conference on Knowledge Discovery and Data Mining},
  year={2023}
}"""
    summary = "Adds the sharpness to the loss with a weight that can be chosen."
    cost = Cost(passes="k + 1", memory="1, and the ascent gradient")
    options = {
        "gamma": Option(
            0.9, "weight γ/(1−γ) of the sharpness; 0.5 is SAM", "a number with 0 <= γ < 1", lambda x: 0 <= x < 1
        ),
        "decouple": Option(False, "step along s − g separately from the optimizer", "true or false", lambda x: True),
    }
    combines = True
    gamma: float
    decouple: bool

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._pending: dict[Tensor, Tensor] = {}

    def combine(self, g: list[Tensor], s: list[Tensor], products: Products, at: Point) -> None:
        weight = self.gamma / (1 - self.gamma)
        if not self.decouple:
            one = torch.ones_like(products.ss)
            share = torch.where(products.finite, weight * one, one)
            add_scaled(s, share, g, 1 - share)
            return
        differences = copies(s)
        add(differences, g, -1)
        differences = unscaled(differences, at.loss_scale)
        clear_if_not_finite(differences, products.finite)
        self._pending = dict(zip(at.parameters, map(local, differences), strict=True))
        # If s is not finite, it stays, so that fp16's scaler finds it and skips the step
        replace_if(s, g, products.finite)

    def begin_update(self, active: bool, progress: float) -> None:
        self._pending.clear()  # not empty if fp16's scaler skipped the last step

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        weight = self.gamma / (1 - self.gamma)
        for group in optimizer.param_groups:
            stepped = [parameter for parameter in group["params"] if parameter in self._pending]
            differences = [self._pending.pop(parameter) for parameter in stepped]
            for weights, changes in local_chunks(stepped, differences, max_elements=CHUNK_ELEMENTS):
                torch._foreach_mul_(changes, group["lr"] * weight)
                torch._foreach_sub_(weights, cast(changes, weights[0].dtype))

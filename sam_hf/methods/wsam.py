r"""
WSAM (Yue, Jiang, Ye, Gao, Liu, Zhang: "Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization
Term", KDD 2023, arXiv 2305.15817).

    u = g + γ/(1−γ) (s − g)

Sharpness as a regulariser of weight γ/(1−γ): γ = 0.5 is SAM, less is closer to plain training. That is the coupled
form. With `"decouple": true` (the paper's own form) the optimizer steps with g, and then w ← w − lr · γ/(1−γ) (s − g),
so that sharpness stays out of its moments. Default γ: 0.9; ρ as in SAM.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from ..tensors.lists import CHUNK_ELEMENTS, add, cast, copies, local, local_groups, replace_if
from ._averages import unscaled
from ._base import Ascent, Cost, Method, Option, Point, Products
from ._combination import add_scaled
from ._direction import clear_if_not_finite, dual_direction


class WSAM(Method):
    name = "wsam"
    title = "Weighted SAM"
    paper = "https://arxiv.org/abs/2305.15817"
    citation = """@inproceedings{yue2023sharpness,
  title={Sharpness-Aware Minimization Revisited: Weighted Sharpness as a Regularization Term},
  author={Yun Yue and Jiadi Jiang and Zhiling Ye and Ning Gao and Yongchao Liu and Ke Zhang},
  booktitle={ACM SIGKDD Conference on Knowledge Discovery and Data Mining},
  year={2023}
}"""
    summary = "Sharpness as a regulariser whose weight is chosen."
    cost = Cost(passes="k + 1", memory="1, and the ascent gradient")
    default_rho = 0.05
    options = {
        "gamma": Option(
            0.9, "weight γ/(1−γ) of the sharpness; 0.5 is SAM", "a number with 0 <= γ < 1", lambda x: 0 <= x < 1
        ),
        "decouple": Option(False, "step along s − g beside the optimizer", "true or false", lambda x: True),
    }
    combines = True
    gamma: float
    decouple: bool

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._pending: dict[Tensor, Tensor] = {}

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        return dual_direction(grads, self.p)

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
        # An s that is not finite stays, so that fp16's scaler finds it and skips the step
        replace_if(s, g, products.finite)

    def begin_update(self, active: bool, progress: float) -> None:
        self._pending.clear()  # of a step that fp16's scaler skipped

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        weight = self.gamma / (1 - self.gamma)
        for group in optimizer.param_groups:
            stepped = [parameter for parameter in group["params"] if parameter in self._pending]
            differences = [self._pending.pop(parameter) for parameter in stepped]
            for some, theirs in local_groups(stepped, differences):
                torch._foreach_mul_(theirs, group["lr"] * weight)
                for targets, changes in local_groups(some, theirs, at_most=CHUNK_ELEMENTS):
                    torch._foreach_sub_(targets, cast(changes, targets[0].dtype))

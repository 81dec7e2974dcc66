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

from ..norms import local
from .base import Ascent, Cost, Method, Option, Point, Products
from .combination import add_scaled
from .direction import dual_direction
from .memory import unscaled


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
        for parameter, descent, gradient in zip(at.parameters, s, g, strict=True):
            (difference,) = unscaled([descent - gradient], at.loss_scale)
            part = local(difference)
            finite = products.finite.to(part.device)
            self._pending[parameter] = torch.where(finite, part, 0)
            # An s that is not finite stays, so that fp16's scaler finds it and skips the step
            local(descent).copy_(torch.where(finite, local(gradient), local(descent)))

    def begin_update(self, active: bool, progress: float) -> None:
        self._pending.clear()  # of a step that fp16's scaler skipped

    @torch.no_grad()
    def after_step(self, optimizer: Optimizer) -> None:
        weight = self.gamma / (1 - self.gamma)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter in self._pending:
                    part = local(parameter)
                    part.sub_((self._pending.pop(parameter) * (group["lr"] * weight)).to(part.dtype))

r"""
LookSAM (Liu, Mai, Chen, Hsieh, You: "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022,
arXiv 2203.02714).

    every k-th update:  u = s, and keep  s_v = s − (⟨g, s⟩/‖g‖²) g
    between them:       u = g + α (‖g‖/‖s_v‖) s_v

The part of s at right angles to g changes slowly: it is computed on every k-th update (`sam_interval`) and used again
on the plain ones between (algorithm 1). Defaults: α = 0.7, k = 5; ρ as in SAM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..norms import global_norm, local
from .base import Ascent, Cost, Method, Option, Point, Products
from .combination import ratio
from .direction import dual_direction
from .memory import kept


class LookSAM(Method):
    name = "looksam"
    title = "LookSAM"
    paper = "https://arxiv.org/abs/2203.02714"
    citation = """@inproceedings{liu2022towards,
  title={Towards Efficient and Scalable Sharpness-Aware Minimization},
  author={Yong Liu and Siqi Mai and Xiangning Chen and Cho-Jui Hsieh and Yang You},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2022}
}"""
    summary = "SAM on every fifth update, whose sharpness part the updates between reuse."
    cost = Cost(passes="1 + k/interval", memory="2, and the ascent gradient")
    default_rho = 0.05
    keeps_state = True
    state_is_shared = True
    default_interval = 5
    options = {"alpha": Option(0.7, "weight of the part that is reused", "a finite number >= 0", lambda x: x >= 0)}
    combines = True
    reuses = True
    alpha: float

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        return dual_direction(grads, self.p)

    def combine(self, g: list[Tensor], s: list[Tensor], products: Products, at: Point) -> None:
        share = ratio(products.gs, products.gg, products.finite)
        parts = self.tensors.setdefault("part", {})
        for parameter, gradient, descent in zip(at.parameters, g, s, strict=True):
            part = kept(parts, parameter)
            fresh = local(descent).to(part.dtype) - share.to(part.device, part.dtype) * local(gradient).to(part.dtype)
            if at.loss_scale is not None:
                fresh /= at.loss_scale.to(part.device)
            part.copy_(torch.where(products.finite.to(part.device), fresh, part))

        for parameter in parts.keys() - set(at.parameters):  # unused in this update: g = s = 0 there
            parts[parameter].mul_(~products.finite.to(parts[parameter].device))

    def reuse(self, grads: list[Tensor], at: Point) -> None:
        parts = self.tensors.get("part", {})
        pairs = [(grad, parts[p], p) for grad, p in zip(grads, at.parameters, strict=True) if p in parts]
        if not pairs:
            return
        norm, part_norm = (
            global_norm(grads),
            global_norm([part for _, part, _ in pairs], like=[p for _, _, p in pairs]),
        )
        weight = self.alpha * ratio(norm, part_norm, part_norm.isfinite())
        for grad, part, _ in pairs:
            target = local(grad)
            target += (weight.to(part.device, part.dtype) * part).to(target.dtype)

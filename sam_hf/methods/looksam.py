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

from ..tensors.lists import CHUNK_ELEMENTS, add, cast, divide, local_groups, multiply, replace_if
from ..tensors.norms import global_norm
from ._averages import state_tensor
from ._base import Ascent, Cost, Method, Option, Point, Products
from ._combination import ratio
from ._direction import dual_direction


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
        tensors = self.tensors.setdefault("part", {})
        kept_parts = [state_tensor(tensors, parameter) for parameter in at.parameters]
        for some, gradients, descents in local_groups(kept_parts, g, s, at_most=CHUNK_ELEMENTS):
            fresh = cast(gradients)
            multiply(fresh, -share)
            add(fresh, cast(descents))
            if at.loss_scale is not None:
                divide(fresh, at.loss_scale)
            replace_if(some, fresh, products.finite)
        unused = [tensors[p] for p in tensors.keys() - set(at.parameters)]  # in this update: g = s = 0 there
        multiply(unused, ~products.finite)

    def reuse(self, grads: list[Tensor], at: Point) -> None:
        tensors = self.tensors.get("part", {})
        pairs = [(grad, p) for grad, p in zip(grads, at.parameters, strict=True) if p in tensors]
        if not pairs:
            return
        changed, kept_parts = [grad for grad, _ in pairs], [tensors[p] for _, p in pairs]
        norm, part_norm = global_norm(grads), global_norm(kept_parts, like=[p for _, p in pairs])
        weight = self.alpha * ratio(norm, part_norm, part_norm.isfinite())
        for some, their_parts in local_groups(changed, kept_parts, at_most=CHUNK_ELEMENTS):
            added = torch._foreach_mul(their_parts, weight.to(their_parts[0]))
            torch._foreach_add_(some, cast(added, some[0].dtype))

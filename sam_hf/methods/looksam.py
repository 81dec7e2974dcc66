from __future__ import annotations

import torch
from torch import Tensor

from ..tensors.lists import CHUNK_ELEMENTS, add, cast, divide, local_chunks, multiply, replace_if
from ..tensors.norms import global_norm
from ._averages import state_tensor
from ._base import Cost, Option, Point, Products
from ._combination import ratio
from .sam import SAM


class LookSAM(SAM):
    r"""
    LookSAM (Liu, Mai, Chen, Hsieh, You: "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022,
    arXiv 2203.02714).

        every k-th update:  u = s, and keep  s_v = s − (⟨g, s⟩/‖g‖²) g
        between them:       u = g + α (‖g‖/‖s_v‖) s_v

    The part of s that is orthogonal to g changes slowly. It is computed on every k-th update (`sam_interval`) and used
    again on the plain updates between them (algorithm 1). Defaults: α = 0.7, k = 5; ρ as in SAM.
    """

    name = "looksam"
    title = "LookSAM"
    paper = "https://arxiv.org/abs/2203.02714"
    citation = """@inproceedings{liu2022towards,
  title={Towards Efficient and Scalable Sharpness-Aware Minimization},
  author={Yong Liu and Siqi Mai and Xiangning Chen and Cho-Jui Hsieh and Yang You},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2022}
}"""
    summary = "SAM on every fifth update; the plain updates between them reuse a part of its gradient."
    cost = Cost(passes="1 + k/interval", memory="2, and the ascent gradient")
    keeps_state = True
    state_is_shared = True
    default_interval = 5
    options = {"alpha": Option(0.7, "weight of the reused part", "a finite number >= 0", lambda x: x >= 0)}
    combines = True
    reuses = True
    alpha: float

    def combine(self, g: list[Tensor], s: list[Tensor], products: Products, at: Point) -> None:
        share = ratio(products.gs, products.gg, products.finite)
        tensors = self.tensors.setdefault("part", {})
        parts = [state_tensor(tensors, parameter) for parameter in at.parameters]
        for old_parts, gradients, descents in local_chunks(parts, g, s, max_elements=CHUNK_ELEMENTS):
            new_parts = cast(gradients)
            multiply(new_parts, -share)
            add(new_parts, cast(descents))
            if at.loss_scale is not None:
                divide(new_parts, at.loss_scale)
            replace_if(old_parts, new_parts, products.finite)
        unused = [tensors[p] for p in tensors.keys() - set(at.parameters)]  # g = s = 0 there in this update
        multiply(unused, ~products.finite)

    def reuse(self, grads: list[Tensor], at: Point) -> None:
        tensors = self.tensors.get("part", {})
        pairs = [(grad, p) for grad, p in zip(grads, at.parameters, strict=True) if p in tensors]
        if not pairs:
            return
        changed, parts = [grad for grad, _ in pairs], [tensors[p] for _, p in pairs]
        norm, part_norm = global_norm(grads), global_norm(parts, like=[p for _, p in pairs])
        weight = self.alpha * ratio(norm, part_norm, part_norm.isfinite())
        for gradients, some_parts in local_chunks(changed, parts, max_elements=CHUNK_ELEMENTS):
            added = torch._foreach_mul(some_parts, weight.to(some_parts[0]))
            torch._foreach_add_(gradients, cast(added, gradients[0].dtype))

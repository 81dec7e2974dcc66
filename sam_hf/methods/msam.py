from __future__ import annotations

import torch
from torch import Tensor

from ..tensors.lists import copy, local_chunks, sum_dtype
from ._base import Ascent, Cost, Method, Point
from ._direction import ascent_along, checked_norm

_NO_ASCENT = "it makes no ascent pass"


class MomentumSAM(Method):
    r"""
    Momentum-SAM (Becker, Altrock, Risse: "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead",
    arXiv 2401.12033).

        ε̂ = −ρ v/‖v‖₂

    The perturbation follows the optimizer's first moment v from the previous update (SGD's `momentum_buffer`, Adam's
    `exp_avg`), and not a gradient of its own. It points in the direction in which the optimizer has just stepped and
    will step again. This takes one pass per update, at w + ε (algorithm 1). w itself is never visited, so the logged
    `loss` is L(w+ε). ε = 0 until there is a moment. Default ρ: that of SAM.
    """

    name = "msam"
    title = "Momentum-SAM"
    paper = "https://arxiv.org/abs/2401.12033"
    citation = """@article{becker2024momentum,
  title={Momentum-{SAM}: Sharpness Aware Minimization without Computational Overhead},
  author={Marlon Becker and Frederick Altrock and Benjamin Risse},
  journal={arXiv preprint arXiv:2401.12033},
  year={2024}
}"""
    summary = "Uses the gradient at a point along the optimizer's momentum, in one pass per update."
    cost = Cost(passes="1", memory="2")
    default_rho = 0.05
    refuses = {
        "sam_p": "its direction is not the dual of a gradient",
        "sam_ascent_steps": _NO_ASCENT,
        "sam_ascent_fraction": _NO_ASCENT,
        "sam_m": "all examples share the perturbation along the optimizer's momentum",
    }
    perturbs_by_momentum = True

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        directions = [torch.empty_like(moment, dtype=sum_dtype(moment.dtype)) for moment in grads]
        copy(directions, grads)
        for (chunk,) in local_chunks(directions):
            torch._foreach_neg_(chunk)
        norm, finite = checked_norm(directions)
        return ascent_along(directions, norm, finite)

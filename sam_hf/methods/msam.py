r"""
Momentum-SAM (Becker, Altrock, Risse: "Momentum-SAM: Sharpness Aware Minimization without Computational Overhead",
arXiv 2401.12033).

    ε̂ = −ρ v/‖v‖₂

The perturbation follows the optimizer's first moment v of the update before (SGD's `momentum_buffer`, Adam's
`exp_avg`) instead of a gradient of its own, to the side on which the optimizer has just stepped and will step again:
one pass an update, at w + ε (algorithm 1). w itself is never visited, so that the logged `loss` is L(w+ε). Until there
is a moment, ε = 0. Default ρ: that of SAM.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tensors.lists import copy, local_groups, wide
from ..tensors.norms import global_norm
from ._base import Ascent, Cost, Method, Point
from ._direction import clear_if_not_finite, normalized

_NO_ASCENT = "it makes no ascent pass"


class MomentumSAM(Method):
    name = "msam"
    title = "Momentum-SAM"
    paper = "https://arxiv.org/abs/2401.12033"
    citation = """@article{becker2024momentum,
  title={Momentum-{SAM}: Sharpness Aware Minimization without Computational Overhead},
  author={Marlon Becker and Frederick Altrock and Benjamin Risse},
  journal={arXiv preprint arXiv:2401.12033},
  year={2024}
}"""
    summary = "The gradient at a point that the optimizer's momentum chooses: one pass an update."
    cost = Cost(passes="1", memory="2")
    default_rho = 0.05
    refuses = {
        "sam_p": "its direction is no dual of a gradient",
        "sam_ascent_steps": _NO_ASCENT,
        "sam_ascent_fraction": _NO_ASCENT,
        "sam_m": "all examples share the perturbation that the optimizer's momentum gives",
    }
    perturbs_by_momentum = True

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        directions = [torch.empty_like(moment, dtype=wide(moment.dtype)) for moment in grads]
        copy(directions, grads)
        for (some,) in local_groups(directions):
            torch._foreach_neg_(some)
        norm = global_norm(directions)
        finite = norm.isfinite()
        clear_if_not_finite(directions, finite)
        return normalized(directions, norm, finite)

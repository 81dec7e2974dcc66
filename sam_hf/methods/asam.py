r"""
ASAM (Kwon, Kim, Park, Choi: "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
Networks", ICML 2021, arXiv 2102.11600).

    ε̂ = ρ T² g / ‖T g‖₂,    T = |w| + η for weights, 1 for biases

The ball is measured in units of each weight, so that rescaling layers without changing the function does
not change the sharpness. As in the authors' code, a parameter is a weight if its own name contains "weight". Defaults:
ρ = 0.5, η = 0.01.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..tensors.lists import CHUNK_ELEMENTS, cast, copies, local_groups
from ..tensors.norms import global_norm
from ._base import Ascent, Cost, Method, Option, Point
from ._direction import clear_if_not_finite, normalized


class ASAM(Method):
    name = "asam"
    title = "Adaptive SAM"
    paper = "https://arxiv.org/abs/2102.11600"
    citation = """@inproceedings{kwon2021asam,
  title={{ASAM}: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks},
  author={Jungmin Kwon and Jeongseop Kim and Hyunseo Park and In Kwon Choi},
  booktitle={International Conference on Machine Learning},
  year={2021}
}"""
    summary = "SAM in a ball that is measured in units of each weight."
    cost = Cost(passes="k + 1", memory="1")
    default_rho = 0.5
    radius_is_a_length = False  # that of T⁻¹ε
    options = {
        "eta": Option(0.01, "added to |w|, so that weights of zero move too", "a finite number >= 0", lambda x: x >= 0)
    }
    refuses = {"sam_p": "its ball is an ellipsoid (p = 2)"}
    eta: float

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        norm = global_norm(grads)
        finite = norm.isfinite()
        clear_if_not_finite(grads, finite)
        directions = cast(grads)
        # ‖T g‖ first, then T² g in the same memory
        self.scale(directions, at)
        scale = normalized(directions, norm, finite).scale
        self.scale(directions, at)
        return Ascent(directions, scale, norm, finite)

    def scale(self, directions: list[Tensor], at: Point) -> None:
        """Multiply `directions` by T, in place."""
        pairs = [
            (direction, weight)
            for direction, weight, name in zip(directions, at.weights, at.names, strict=True)
            if "weight" in name
        ]
        for some, weights in local_groups([d for d, _ in pairs], [w for _, w in pairs], at_most=CHUNK_ELEMENTS):
            factors = copies(weights, some[0].dtype)
            torch._foreach_abs_(factors)
            torch._foreach_add_(factors, self.eta)
            torch._foreach_mul_(some, factors)

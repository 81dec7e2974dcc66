from __future__ import annotations

import torch
from torch import Tensor

from ..tensors.lists import CHUNK_ELEMENTS, cast, copies, local_chunks
from ._base import Ascent, Cost, Method, Option, Point
from ._direction import ascent_along, checked_norm


class ASAM(Method):
    r"""
    ASAM (Kwon, Kim, Park, Choi: "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep
    Neural Networks", ICML 2021, arXiv 2102.11600).

        ε̂ = ρ T² g / ‖T g‖₂,    T = |w| + η for weights, 1 for biases

    The ball is measured in units of each weight, so that rescaling layers without changing the function does not
    change the sharpness. As in the authors' code, a parameter is a weight if its own name contains "weight". Defaults:
    ρ = 0.5, η = 0.01.
    """

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
    radius_is_a_length = False  # ρ is the length of T⁻¹ε
    options = {"eta": Option(0.01, "added to abs(w), to move zero weights", "a finite number >= 0", lambda x: x >= 0)}
    refuses = {"sam_p": "its ball is an ellipsoid, for p = 2 only"}
    eta: float

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        norm, finite = checked_norm(grads)
        directions = cast(grads)
        # First T g for its norm, then T² g in the same memory
        self.scale_by_weights(directions, at)
        scale = ascent_along(directions, norm, finite).scale
        self.scale_by_weights(directions, at)
        return Ascent(directions, scale, norm, finite)

    def scale_by_weights(self, directions: list[Tensor], at: Point) -> None:
        """Multiply `directions` by T, in place."""
        rows = zip(directions, at.weights, at.names, strict=True)
        pairs = [(direction, weight) for direction, weight, name in rows if "weight" in name]
        for chunk, weights in local_chunks([d for d, _ in pairs], [w for _, w in pairs], max_elements=CHUNK_ELEMENTS):
            factors = copies(weights, chunk[0].dtype)
            torch._foreach_abs_(factors)
            torch._foreach_add_(factors, self.eta)
            torch._foreach_mul_(chunk, factors)

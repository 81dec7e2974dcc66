from __future__ import annotations

from torch import Tensor

from ._base import Ascent, Cost, Method, Point
from ._direction import dual_direction


class SAM(Method):
    r"""
    SAM (Foret, Kleiner, Mobahi, Neyshabur: "Sharpness-Aware Minimization for Efficiently Improving Generalization",
    ICLR 2021, arXiv 2010.01412).

        min_w max_{‖ε‖_p ≤ ρ} L(w + ε)
        ε̂ = ρ · sign(g) |g|^{q−1} / (‖g‖_q^q)^{1/p},    g = ∇L(w),    1/p + 1/q = 1;    p = 2:  ε̂ = ρ g/‖g‖₂
        u = ∇L(w + ε̂)

    ε̂ is the maximiser to first order (equation 2). The base optimizer gets u (equation 3, without second-order
    terms). Default ρ: 0.05 (section 3.1).
    """

    name = "sam"
    title = "Sharpness-Aware Minimization"
    paper = "https://arxiv.org/abs/2010.01412"
    citation = """@inproceedings{foret2021sharpnessaware,
  title={Sharpness-Aware Minimization for Efficiently Improving Generalization},
  author={Pierre Foret and Ariel Kleiner and Hossein Mobahi and Behnam Neyshabur},
  booktitle={International Conference on Learning Representations},
  year={2021}
}"""
    summary = "Uses the gradient at the point of highest loss in a ball around w, to first order."
    cost = Cost(passes="k + 1", memory="1")
    default_rho = 0.05

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        return dual_direction(grads, self.p)

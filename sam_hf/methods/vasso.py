from __future__ import annotations

from torch import Tensor

from ..tensors.lists import copy
from ._averages import moving_average, unscaled
from ._base import Ascent, Cost, Method, Option, Point
from ._direction import ascent_along, checked_norm


class VaSSO(Method):
    r"""
    VaSSO (Li, Giannakis: "Enhancing Sharpness-Aware Optimization Through Variance Suppression", NeurIPS 2023, arXiv
    2309.15639).

        d_t = (1 − θ) d_{t−1} + θ g_t,    ε̂ = ρ d/‖d‖₂

    The perturbation follows a moving average of the gradients, which suppresses the noise in the direction. The first
    update has d = g. Default θ: 0.4; ρ as in SAM.
    """

    name = "vasso"
    title = "Variance-Suppressed Sharpness-aware Optimization"
    paper = "https://arxiv.org/abs/2309.15639"
    citation = """@inproceedings{li2023enhancing,
  title={Enhancing Sharpness-Aware Optimization Through Variance Suppression},
  author={Bingcong Li and Georgios B. Giannakis},
  booktitle={Advances in Neural Information Processing Systems},
  year={2023}
}"""
    summary = "SAM along a moving average of the gradients."
    cost = Cost(passes="2", memory="2")
    default_rho = 0.05
    keeps_state = True
    options = {
        "theta": Option(
            0.4, "weight of the new gradient in the average", "a number with 0 < θ <= 1", lambda x: 0 < x <= 1
        )
    }
    refuses = {
        "sam_p": "its direction is not the dual of a gradient",
        "sam_ascent_steps": "its average contains only gradients at w",
    }
    theta: float

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        norm, finite = checked_norm(grads)
        directions = unscaled(grads, at.loss_scale)
        copy(directions, moving_average(self, "direction", directions, at, finite, self.theta))
        return ascent_along(directions, norm, finite)

r"""
Friendly SAM (Li, Zhou, He, Cheng, Huang: "Friendly Sharpness-Aware Minimization", CVPR 2024, arXiv 2403.12350).

    d_t = g_t − σ m_{t−1},    m_t = λ m_{t−1} + (1 − λ) g_t,    ε̂ = ρ d/‖d‖₂

The full gradient, estimated by a moving average, is taken off the direction: what is left is the noise of the batch.
As in the authors' code it is the previous average that is taken off; the first update has d = g and
m = g. Defaults: σ = 1, λ = 0.9; ρ as in SAM.
"""

from __future__ import annotations

from torch import Tensor

from ..tensors.norms import global_norm
from ._averages import moving_average, unscaled
from ._base import Ascent, Cost, Method, Option, Point
from ._direction import clear_if_not_finite, normalized


class FriendlySAM(Method):
    name = "fsam"
    title = "Friendly SAM"
    paper = "https://arxiv.org/abs/2403.12350"
    citation = """@inproceedings{li2024friendly,
  title={Friendly Sharpness-Aware Minimization},
  author={Tao Li and Pan Zhou and Zhengbao He and Xinwen Cheng and Xiaolin Huang},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2024}
}"""
    summary = "SAM along the noise of the batch: the gradient less its moving average."
    cost = Cost(passes="2", memory="2")
    default_rho = 0.05
    keeps_state = True
    options = {
        "sigma": Option(1.0, "share of the average that is taken off", "a finite number >= 0", lambda x: x >= 0),
        "lambda": Option(0.9, "decay of the average", "a number with 0 <= λ < 1", lambda x: 0 <= x < 1),
    }
    refuses = {
        "sam_p": "its direction is no dual of the gradient",
        "sam_ascent_steps": "its average is of gradients at w",
    }
    sigma: float
    lambda_: float

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        norm = global_norm(grads)
        finite = norm.isfinite()
        clear_if_not_finite(grads, finite)
        directions = unscaled(grads, at.loss_scale)
        moving_average(self, "average", directions, at, finite, 1 - self.lambda_, taken_off=self.sigma)
        return normalized(directions, norm, finite)

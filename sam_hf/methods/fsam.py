from __future__ import annotations

from torch import Tensor

from ._averages import moving_average, unscaled
from ._base import Ascent, Cost, Method, Option, Point
from ._direction import ascent_along, checked_norm


class FriendlySAM(Method):
    r"""
    Friendly SAM (Li, Zhou, He, Cheng, Huang: "Friendly Sharpness-Aware Minimization", CVPR 2024, arXiv 2403.12350).

        d_t = g_t − σ m_{t−1},    m_t = λ m_{t−1} + (1 − λ) g_t,    ε̂ = ρ d/‖d‖₂

    A moving average estimates the full gradient. It is subtracted from the direction, which leaves the noise of the
    batch. As in the authors' code, the previous average is subtracted. The first update has d = g and m = g. Defaults:
    σ = 1, λ = 0.9; ρ as in SAM.
    """

    name = "fsam"
    title = "Friendly SAM"
    paper = "https://arxiv.org/abs/2403.12350"
    citation = """@inproceedings{li2024friendly,
  title={Friendly Sharpness-Aware Minimization},
  author={Tao Li and Pan Zhou and Zhengbao He and Xinwen Cheng and Xiaolin Huang},
  booktitle={IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year={2024}
}"""
    summary = "SAM along the noise of the batch: the gradient minus its moving average."
    cost = Cost(passes="2", memory="2")
    default_rho = 0.05
    keeps_state = True
    options = {
        "sigma": Option(1.0, "share of the average that is subtracted", "a finite number >= 0", lambda x: x >= 0),
        "lambda": Option(0.9, "decay of the average", "a number with 0 <= λ < 1", lambda x: 0 <= x < 1),
    }
    refuses = {
        "sam_p": "its direction is not the dual of a gradient",
        "sam_ascent_steps": "its average contains only gradients at w",
    }
    sigma: float
    lambda_: float

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        norm, finite = checked_norm(grads)
        directions = unscaled(grads, at.loss_scale)
        moving_average(self, "average", directions, at, finite, 1 - self.lambda_, subtract=self.sigma)
        return ascent_along(directions, norm, finite)

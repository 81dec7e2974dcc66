from __future__ import annotations

from torch import Tensor

from ._base import Cost, Option, Point, Products
from ._combination import add_scaled, ratio
from .sam import SAM


class GSAM(SAM):
    r"""
    GSAM (Zhuang, Gong, Yuan, Cui, Adam, Dvornek, Tatikonda, Duncan, Liu: "Surrogate Gap Minimization Improves
    Sharpness-Aware Training", ICLR 2022, arXiv 2203.08065).

        u = s − α g⊥,    g⊥ = g − (⟨g, s⟩/‖s‖²) s

    ε as in SAM. The part of g that is orthogonal to s is subtracted, which lowers the surrogate gap L(w+ε) − L(w)
    without raising L(w+ε) (algorithm 1). In the paper ρ follows the learning rate: `sam_rho_schedule="lr"`. Default α:
    0.4; ρ as in SAM.
    """

    name = "gsam"
    title = "Surrogate Gap SAM"
    paper = "https://arxiv.org/abs/2203.08065"
    citation = """@inproceedings{zhuang2022surrogate,
  title={Surrogate Gap Minimization Improves Sharpness-Aware Training},
  author={Juntang Zhuang and Boqing Gong and Liangzhe Yuan and Yin Cui and Hartwig Adam and Nicha C Dvornek and
    Sekhar Tatikonda and James s Duncan and Ting Liu},
  booktitle={International Conference on Learning Representations},
  year={2022}
}"""
    summary = "SAM that also lowers the gap between L(w+ε) and L(w)."
    cost = Cost(passes="k + 1", memory="1, and the ascent gradient")
    options = {"alpha": Option(0.4, "weight of g⊥, orthogonal to s", "a finite number >= 0", lambda x: x >= 0)}
    combines = True
    alpha: float

    def combine(self, g: list[Tensor], s: list[Tensor], products: Products, at: Point) -> None:
        # s − α g⊥ = (1 + α ⟨g, s⟩/‖s‖²) s − α g
        alpha = self.alpha * products.finite.to(products.ss.dtype)
        add_scaled(s, 1 + alpha * ratio(products.gs, products.ss, products.finite), g, -alpha)

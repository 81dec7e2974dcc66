"""What a user is told, once a run, where training goes on but SAM does less than was asked for."""

from __future__ import annotations

from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Below this share of ε that survives rounding, the SAM update is no longer the one that was asked for
_ENOUGH_OF_EPSILON = 0.9


class RunWarnings:
    """For one training run."""

    def __init__(self) -> None:
        self._told: set[str] = set()

    def on_rounding(self, ratio: Tensor | float | None, stochastic: bool) -> None:
        """Of `sam_perturbation_ratio`. A ratio of stochastic rounding scatters around 1, and says little."""
        if ratio is None or stochastic or float(ratio) >= _ENOUGH_OF_EPSILON:
            return
        self._tell(
            "rounding",
            f"Only {float(ratio):.0%} of the SAM perturbation survives rounding to the precision of the weights. Set "
            "sam_stochastic_rounding=True, use a larger sam_rho, or keep the weights in float32 and train with "
            "bf16=True.",
        )

    def on_skipped(self, share: float, scaled: bool) -> None:
        """Of `sam_skipped`. fp16's scaler finds its scale by overflows: they are expected then."""
        if share == 0 or scaled:
            return
        self._tell(
            "skipped",
            f"{share:.0%} of the ascent gradients since the last log were NaN or infinite. Those updates had no SAM "
            "perturbation. Look for such values in the data, or lower the learning rate.",
        )

    def on_bypass(self, trainer: str) -> None:
        """Of a window that did not get all of its micro-batches before the optimizer stepped."""
        self._tell(
            "bypass",
            f"An update was made without SAM: {trainer}.training_step did not hand every micro-batch of it on to "
            "super().training_step.",
        )

    def _tell(self, about: str, message: str) -> None:
        if about not in self._told:
            self._told.add(about)
            logger.warning(message)

"""Warnings for runs that continue although SAM does less than the user asked for. Each is shown once per run."""

from __future__ import annotations

from torch import Tensor
from transformers.utils import logging

logger = logging.get_logger(__name__)

# If less of epsilon survives rounding, the SAM update is no longer the one that was asked for
_ENOUGH_OF_EPSILON = 0.9


class RunWarnings:
    """The warnings of one training run."""

    def __init__(self) -> None:
        self._shown: set[str] = set()
        self._is_ratio_checked = False

    def on_first_ratio(self, ratio: Tensor | None, stochastic: bool) -> None:
        """Check the first `sam_perturbation_ratio` at once. This is the only time that a step waits for the device."""
        if ratio is not None and not self._is_ratio_checked:
            self._is_ratio_checked = True
            self.on_rounding(ratio, stochastic)

    def on_rounding(self, ratio: Tensor | float | None, stochastic: bool) -> None:
        """Check a `sam_perturbation_ratio`. With stochastic rounding it scatters around 1, and says little."""
        if ratio is None or stochastic or float(ratio) >= _ENOUGH_OF_EPSILON:
            return
        self._show(
            "rounding",
            f"Only {float(ratio):.0%} of the SAM perturbation survives rounding to the precision of the weights. Set "
            "sam_stochastic_rounding=True, use a larger sam_rho, or keep the weights in float32 and train with "
            "bf16=True.",
        )

    def on_skipped(self, share: float, is_scaled: bool) -> None:
        """Check a `sam_skipped`. fp16's scaler finds its scale through overflows, so with it they are expected."""
        if share == 0 or is_scaled:
            return
        self._show(
            "skipped",
            f"{share:.0%} of the ascent gradients since the last log were NaN or infinite. Those updates had no SAM "
            "perturbation. Look for such values in the data, or lower the learning rate.",
        )

    def on_bypass(self, trainer: str) -> None:
        """Warn that the optimizer stepped before the window had all of its micro-batches."""
        self._show(
            "bypass",
            f"An update was made without SAM, because {trainer}.training_step did not pass every micro-batch on to "
            "super().training_step.",
        )

    def _show(self, about: str, message: str) -> None:
        if about not in self._shown:
            self._shown.add(about)
            logger.warning(message)

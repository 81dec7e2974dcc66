"""A callback that measures sharpness at every evaluation of a training run and adds it to Trainer's metrics."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from ..update.random_state import random_devices
from . import LossOracle, hessian_eigenvalues, m_sharpness
from .checks import check, check_count, check_radius, chosen_parameters
from .measuring import preserved_random_state

logger = logging.get_logger(__name__)

# Vectors stored during the search for λmax. It usually takes no more products than this, and the training run needs
# the memory
_MAX_VECTORS = 8


class SharpnessCallback(TrainerCallback):
    r"""
    Adds sharpness to the metrics of each evaluation: the largest eigenvalue of the Hessian of the training loss
    (SAM, arXiv 2010.01412, section 4.2) and m-sharpness (section 4.1).

    ```python
    SAMTrainer(..., callbacks=[SharpnessCallback(max_examples=128)])
    SharpnessCallback().add_to(trainer)  # after a plain Trainer, or any other, is built
    ```

    These metrics are logged with the evaluation's own. So every tracker gets them, and they are in the result of
    `evaluate()`, in `log_history` and in `all_results.json`, and can be the `metric_for_best_model`:

    - `eval_sharpness_lambda_max`: λmax of ∇²L(w), in loss per squared unit of weight;
    - `eval_sharpness_m`: the mean rise of the loss, L_B(w + ε) − L_B(w), over groups B of m examples;
    - `eval_sharpness_runtime`: the seconds that both took, which `eval_runtime` does not include.

    `eval` is the evaluation's `metric_key_prefix`. With several evaluation datasets, each has its own prefix. Weights
    that have not changed are not measured again. Everything else stays as it was, bit for bit: weights, buffers,
    random number generators, counters. Prediction is not affected.

    Each measurement costs one backward and two forward passes over the examples for m-sharpness, and about 5 to 20
    Hessian-vector products for λmax. A product takes as long as two to three forward and backward passes, and λmax
    takes the memory of 8 more copies of the trained weights.

    Args:
        dataset (`Dataset`, *optional*):
            The dataset to measure on. Defaults to the trainer's `train_dataset`, since the minimum is that of the
            training loss.
        max_examples (`int`, *optional*, defaults to `32`):
            The number of examples over all processes; the same ones each time.
        rho (`float`, *optional*, defaults to `0.05`):
            Radius ρ of m-sharpness. It does not follow `sam_rho`, so that runs can be compared.
        m (`int`, *optional*):
            The number of examples that share an ε. Defaults to the evaluation's batch size per device.
        tolerance (`float`, *optional*, defaults to `0.05`):
            The tolerance of λmax's residual, as a share of λmax. The error of λmax is of the order of the square of
            this: 0.1 % on the text demo, after 5 products.
        max_products (`int`, *optional*, defaults to `50`):
            The largest number of Hessian-vector products. A warning is logged if they are not enough.
        seed (`int`, *optional*, defaults to `0`):
            The seed of the draw of examples and of the first vector.

    Raises:
        ValueError: an argument is out of range. Also when the callback is added or training begins: there is no
            dataset, or it has no length; the weights are in bf16 or fp16, or sharded (FSDP, DeepSpeed);
            `bf16_full_eval` or `fp16_full_eval` is set.
    """

    def __init__(
        self,
        dataset: Any = None,
        *,
        max_examples: int = 32,
        rho: float = 0.05,
        m: int | None = None,
        tolerance: float = 0.05,
        max_products: int = 50,
        seed: int = 0,
    ):
        check_count("max_examples", max_examples, 1)
        check_radius(rho)
        check("m", m, m is None or m >= 1, "a number >= 1, or None for the evaluation's batches")
        check("tolerance", tolerance, tolerance > 0, "a number > 0")
        check_count("max_products", max_products, 1)
        self.dataset, self.max_examples, self.seed = dataset, max_examples, seed
        self.rho, self.m = rho, m
        self.tolerance, self.max_products = tolerance, max_products
        self._trainer: Any = None
        self._oracle: LossOracle | None = None
        self._measured: tuple[list[int], dict[str, float]] | None = None
        self._added: dict[str, float] = {}

    def add_to(self, trainer: Any) -> None:
        """
        Make this the first of the trainer's callbacks, so that the others see what it adds to the logs.

        Trainer passes the same dictionary of logs to all callbacks, which include the trackers. For an evaluation it
        is also the dictionary that `evaluate()` returns.

        Args:
            trainer ([`~transformers.Trainer`]): the trainer, already built.
        """
        self._trainer = trainer
        self._refuse_unsupported()
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(callback for callback in callbacks if callback is not self)]

    def on_train_begin(self, args, state, control, **kwargs):
        self._refuse_unsupported()  # again: model_init or the user may have set another model since

    def on_log(self, args, state, control, logs=None, **kwargs):
        prefix = _evaluation_prefix(logs or {})
        if prefix is None:
            return
        self._refuse_without_trainer()
        self._added = {f"{prefix}_sharpness_{name}": value for name, value in self._values().items()}
        logs.update(self._added)
        # Trainer has already appended a copy of the logs to the history
        state.log_history[-1].update(self._added)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        # If a trainer's `log` passes on a copy (sentence-transformers), the returned dictionary lacks the metrics
        if metrics is not None:
            metrics.update(self._added)
        self._added = {}

    def _values(self) -> dict[str, float]:
        """Return the metrics of the trainer's current model."""
        # Trainer itself keeps the model without DDP here, so that one call removes every wrapper
        model = extract_model_from_parallel(self._trainer.model, keep_torch_compile=False)
        with preserved_random_state(random_devices(p.device for p in model.parameters())):
            oracle = self._oracle_of(model)
            weights = _fingerprint(model)
            changed = self._measured is None or self._measured[0] != weights
            # Buffers may differ between processes, so all of them measure if one must
            if oracle.over_processes(float(changed)) > 0 or self._measured is None:
                self._measured = weights, self._measure(oracle)
        return self._measured[1]

    def _measure(self, oracle: LossOracle) -> dict[str, float]:
        start = time.perf_counter()
        try:
            eigenvalues = hessian_eigenvalues(
                oracle, 1, tolerance=self.tolerance, max_products=self.max_products, max_vectors=_MAX_VECTORS
            )
            lambda_max = float(eigenvalues.values[0])
        except FloatingPointError as error:
            logger.warning(f"{error} The sharpness of this evaluation is NaN.")
            lambda_max = math.nan
        rise = m_sharpness(oracle, self.rho, m=self.m).mean
        return {"lambda_max": lambda_max, "m": rise, "runtime": round(time.perf_counter() - start, 4)}

    def _oracle_of(self, model: nn.Module) -> LossOracle:
        """Return the previous oracle with its examples, or a new one if the model or its trained weights are new."""
        trained = [id(p) for p in model.parameters() if p.requires_grad]
        oracle = self._oracle
        if oracle is None or oracle.model is not model or [id(p) for p in oracle.weights] != trained:
            self._measured = None
            oracle = self._oracle = LossOracle.from_trainer(
                self._trainer, self.dataset, max_examples=self.max_examples, seed=self.seed, disable_tqdm=True
            )
        return oracle

    def _refuse_without_trainer(self) -> None:
        if self._trainer is None:
            raise ValueError(
                "SharpnessCallback needs the trainer. Build the trainer without it, then call "
                "SharpnessCallback(...).add_to(trainer). Only SAMTrainer takes it in `callbacks`."
            )

    def _refuse_unsupported(self) -> None:
        self._refuse_without_trainer()
        trainer = self._trainer
        args, dataset = trainer.args, trainer.train_dataset if self.dataset is None else self.dataset
        if dataset is None or not hasattr(dataset, "__len__"):
            given = "None" if dataset is None else f"a {type(dataset).__name__} without a length"
            raise ValueError(
                f"SharpnessCallback measures on the trainer's train_dataset, which is {given}. Give another dataset: "
                "SharpnessCallback(dataset=...)."
            )
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            kind = "FSDP" if trainer.is_fsdp_enabled else "DeepSpeed"
            raise ValueError(
                f"Sharpness cannot be measured under {kind}, whose weights are sharded. Train without it, and measure "
                "the saved checkpoint on one device or under DDP."
            )
        if args.bf16_full_eval or args.fp16_full_eval:
            raise ValueError(
                "bf16_full_eval and fp16_full_eval round the weights, which hides curvature, so sharpness cannot be "
                "measured. Leave them out."
            )
        if trainer.model is not None:
            chosen_parameters(extract_model_from_parallel(trainer.model, keep_torch_compile=False))


def add_sharpness(trainer: Any, args: Any) -> None:
    """
    Connect the sharpness callbacks that the trainer was given to it. If it has none and `sharpness_every_eval` is set,
    add one.

    Args:
        trainer ([`~transformers.Trainer`]): the trainer, already built.
        args ([`SAMArguments`]): its `sharpness_*` fields.
    """
    given = [c for c in trainer.callback_handler.callbacks if isinstance(c, SharpnessCallback)]
    if not given and args.sharpness_every_eval:
        given = [SharpnessCallback(max_examples=args.sharpness_examples, rho=args.sharpness_rho, m=args.sharpness_m)]
    for callback in given:
        callback.add_to(trainer)


def _evaluation_prefix(logs: dict[str, Any]) -> str | None:
    """Return the prefix of an evaluation's logs, or `None` for other logs. Only a training's summary has FLOPs too."""
    speed = "_samples_per_second"
    for key in logs:
        prefix = key.removesuffix(speed)
        if key.endswith(speed) and f"{prefix}_runtime" in logs and "total_flos" not in logs:
            return prefix
    return None


@torch.no_grad()
def _fingerprint(model: nn.Module) -> list[int]:
    """Return a sum over the bits of each parameter and buffer, which changes when the model does."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for tensor in (*model.parameters(), *model.buffers()):
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        bits = real.detach().contiguous().view(integers[real.element_size()])
        sums.append(int(bits.sum(dtype=torch.int64)))
    return sums

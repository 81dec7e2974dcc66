"""Sharpness measured at every evaluation of a training run, as metrics among Trainer's own."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback
from transformers.utils import logging

from ..update.model_structure import bare
from ..update.random_state import random_devices
from . import LossOracle, hessian_eigenvalues, m_sharpness
from .scope import random_state_kept
from .weights import chosen_parameters

logger = logging.get_logger(__name__)

# Stored while λmax is searched for, beside a training run that needs its memory; as many as λmax usually takes
_VECTORS = 8


class SharpnessCallback(TrainerCallback):
    r"""
    Adds sharpness to the metrics of each evaluation: the largest eigenvalue of the Hessian of the training loss
    (SAM, arXiv 2010.01412, section 4.2) and m-sharpness (section 4.1).

    ```python
    SAMTrainer(..., callbacks=[SharpnessCallback(max_examples=128)])
    SharpnessCallback().add_to(trainer)  # a plain Trainer, or any other, once it is built
    ```

    They are logged with the evaluation's own, so that every tracker gets them, and are in what `evaluate()` returns,
    in `log_history`, in `all_results.json` and under `metric_for_best_model`:

    - `eval_sharpness_lambda_max`: λmax of ∇²L(w), in loss per squared unit of weight;
    - `eval_sharpness_m`: the mean rise of the loss, L_B(w + ε) − L_B(w), over groups B of m examples;
    - `eval_sharpness_runtime`: the seconds that both took, which are not part of `eval_runtime`.

    `eval` is the evaluation's `metric_key_prefix`. With several evaluation datasets the values are under the prefix
    of each; weights that have not changed since are not measured twice. All else is left as it was bit for bit:
    weights, buffers, random number generators, counters. Prediction is not touched.

    What it costs, each time: m-sharpness one backward and two forward passes over the examples; λmax some 5 to 20
    Hessian-vector products, each of about the time of two to three forward and backward passes, and the memory of 8
    more copies of the trained weights.

    Args:
        dataset (`Dataset`, *optional*):
            What is measured on. Defaults to the trainer's `train_dataset`, whose loss is the one that has a minimum.
        max_examples (`int`, *optional*, defaults to `32`):
            On this many of its examples, over all processes; the same ones each time.
        rho (`float`, *optional*, defaults to `0.05`):
            Radius ρ of m-sharpness. It does not follow `sam_rho`, so that runs can be compared.
        m (`int`, *optional*):
            Examples that share an ε. Defaults to the evaluation's batch on a device.
        tolerance (`float`, *optional*, defaults to `0.05`):
            Of λmax's residual, as a share of λmax. Its own error is of the order of the square of this: 0.1 % on the
            text demo, after 5 products.
        max_products (`int`, *optional*, defaults to `50`):
            Hessian-vector products at most; a warning says where they were not enough.
        seed (`int`, *optional*, defaults to `0`):
            Of the draw of examples, and of the first vector.

    Raises:
        ValueError: when it is added, or training begins: there is no dataset, or one without a length; weights in
            bf16 or fp16, or sharded (FSDP, DeepSpeed); `bf16_full_eval` or `fp16_full_eval`; an argument out of range.
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
        for name, value, fits, allowed in (
            ("max_examples", max_examples, max_examples >= 1, "a number >= 1"),
            ("rho", rho, 0 <= rho < math.inf, "a finite number >= 0"),
            ("m", m, m is None or m >= 1, "a number >= 1, or None for the evaluation's batches"),
            ("tolerance", tolerance, tolerance > 0, "a number > 0"),
            ("max_products", max_products, max_products >= 1, "a number >= 1"),
        ):
            if not fits:
                raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}.")
        self.dataset, self.max_examples, self.seed = dataset, max_examples, seed
        self.rho, self.m = rho, m
        self.tolerance, self.max_products = tolerance, max_products
        self._trainer: Any = None
        self._oracle: LossOracle | None = None
        self._measured: tuple[list[int], dict[str, float]] | None = None
        self._added: dict[str, float] = {}

    def add_to(self, trainer: Any) -> None:
        """
        Make it one of the trainer's callbacks, the first of them: what it adds to the logs is there for the others.

        Trainer hands all callbacks the same dictionary of logs, which for an evaluation is also the one that
        `evaluate()` returns; trackers are callbacks.
        """
        self._trainer = trainer
        self._refuse_unsupported()
        callbacks = trainer.callback_handler.callbacks
        callbacks[:] = [self, *(callback for callback in callbacks if callback is not self)]

    def on_train_begin(self, args, state, control, **kwargs):
        self._refuse_unsupported()  # again: model_init has made another model by now, or the user has set one

    def on_log(self, args, state, control, logs=None, **kwargs):
        prefix = _evaluation_of(logs or {})
        if prefix is None:
            return
        self._refuse_alone()
        self._added = {f"{prefix}_sharpness_{name}": value for name, value in self._values().items()}
        logs.update(self._added)
        # Trainer has written a copy of the logs there
        state.log_history[-1].update(self._added)

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        # A trainer whose `log` hands on a copy (sentence-transformers) returns the dictionary of before
        if metrics is not None:
            metrics.update(self._added)
        self._added = {}

    def _values(self) -> dict[str, float]:
        """Of the trainer's model as it is now."""
        trainer = self._trainer
        with random_state_kept(random_devices(p.device for p in trainer.model.parameters())):
            oracle = self._oracle_of(bare(trainer.model))
            weights = _fingerprint(oracle.model)
            changed = self._measured is None or self._measured[0] != weights
            # Buffers may differ between processes: all of them measure, or none
            if oracle.over_processes(float(changed)) > 0 or self._measured is None:
                self._measured = weights, self._measure(oracle)
        return self._measured[1]

    def _measure(self, oracle: LossOracle) -> dict[str, float]:
        start = time.perf_counter()
        try:
            found = hessian_eigenvalues(
                oracle, 1, tolerance=self.tolerance, max_products=self.max_products, max_vectors=_VECTORS
            )
            largest = float(found.values[0])
        except FloatingPointError as error:
            logger.warning(f"{error} The sharpness of this evaluation is NaN.")
            largest = math.nan
        rise = m_sharpness(oracle, self.rho, m=self.m).mean
        return {"lambda_max": largest, "m": rise, "runtime": round(time.perf_counter() - start, 4)}

    def _oracle_of(self, model: nn.Module) -> LossOracle:
        """The one of before, its examples kept, while it is for the same model and the same trained weights."""
        trained = [id(p) for p in model.parameters() if p.requires_grad]
        oracle = self._oracle
        if oracle is None or oracle.model is not model or [id(p) for p in oracle.parameters.values()] != trained:
            self._measured = None
            oracle = self._oracle = LossOracle.from_trainer(
                self._trainer, self.dataset, max_examples=self.max_examples, seed=self.seed, disable_tqdm=True
            )
        return oracle

    def _refuse_alone(self) -> None:
        if self._trainer is None:
            raise ValueError(
                "SharpnessCallback needs the trainer: build it without, then SharpnessCallback(...).add_to(trainer). "
                "Only SAMTrainer takes it in `callbacks`."
            )

    def _refuse_unsupported(self) -> None:
        self._refuse_alone()
        trainer = self._trainer
        args, dataset = trainer.args, trainer.train_dataset if self.dataset is None else self.dataset
        if dataset is None or not hasattr(dataset, "__len__"):
            given = "None" if dataset is None else f"a {type(dataset).__name__} without a length"
            raise ValueError(
                f"SharpnessCallback measures on the trainer's train_dataset, which is {given}. Give it another one: "
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
                "bf16_full_eval and fp16_full_eval round the weights, which hides curvature: sharpness cannot be "
                "measured. Leave them out."
            )
        if trainer.model is not None:
            chosen_parameters(bare(trainer.model), None)


def add_sharpness(trainer: Any, args: Any) -> None:
    """
    Bind the callbacks that the trainer was given to it; without one, add what `sharpness_every_eval` asks for.

    Args:
        trainer ([`~transformers.Trainer`]): once it is built.
        args ([`SAMArguments`]): its `sharpness_*` fields.
    """
    given = [c for c in trainer.callback_handler.callbacks if isinstance(c, SharpnessCallback)]
    if not given and args.sharpness_every_eval:
        given = [SharpnessCallback(max_examples=args.sharpness_examples, rho=args.sharpness_rho, m=args.sharpness_m)]
    for callback in given:
        callback.add_to(trainer)


def _evaluation_of(logs: dict[str, Any]) -> str | None:
    """The prefix of the evaluation whose metrics these are, or `None`: the summary of a training run has FLOPs too."""
    speed = "_samples_per_second"
    for key in logs:
        prefix = key.removesuffix(speed)
        if key.endswith(speed) and f"{prefix}_runtime" in logs and "total_flos" not in logs:
            return prefix
    return None


@torch.no_grad()
def _fingerprint(model: nn.Module) -> list[int]:
    """A sum over the bits of each parameter and buffer: another one wherever the model has changed."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    sums = []
    for tensor in (*model.parameters(), *model.buffers()):
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        bits = real.detach().contiguous().view(integers[real.element_size()])
        sums.append(int(bits.sum(dtype=torch.int64)))
    return sums

"""
Checks of the options before data are read and the model is loaded.

transformers finds many of these faults itself, but only when Trainer is built, when training starts or after the first
evaluation. So the same functions of transformers are called here, with a weight of a single number.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import Trainer, get_scheduler

from ..errors import UsageError

if TYPE_CHECKING:
    from ..inputs.options import ModelArguments

_POSITIVE: tuple[str, Callable[[Any], bool]] = ("at least 1", lambda x: x >= 1)
_NOT_NEGATIVE: tuple[str, Callable[[Any], bool]] = ("a finite number of at least 0", lambda x: 0 <= x < math.inf)
_SEED: tuple[str, Callable[[Any], bool]] = ("from 0 to 4294967295", lambda x: 0 <= x < 2**32)
# Options whose values Trainer does not check, or checks late. NaN fails every comparison
_NUMBERS = {
    "per_device_train_batch_size": _POSITIVE,
    "per_device_eval_batch_size": _POSITIVE,
    "gradient_accumulation_steps": _POSITIVE,
    "learning_rate": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "max_grad_norm": ("a number of at least 0", lambda x: x >= 0),
    "dataloader_num_workers": _NOT_NEGATIVE,
    "label_smoothing_factor": ("from 0 to 1", lambda x: 0 <= x <= 1),
    "seed": _SEED,
    "data_seed": _SEED,
}


def check_options(args: Any, model_arguments: ModelArguments) -> None:
    """
    Raise `UsageError` for options with which the run would fail later.

    Args:
        args (`TrainingArguments`): the training arguments.
        model_arguments (`ModelArguments`): what is trained.
    """
    for name, (allowed, accepts) in _NUMBERS.items():
        value = getattr(args, name)
        if value is not None and not accepts(value):
            raise UsageError(f"{name}={value} is not allowed: it must be {allowed}")
    if args.batch_eval_metrics:
        raise UsageError("batch_eval_metrics is not offered here: the metrics need all predictions at once")
    _check_trackers(args.report_to)
    _check_output_dir(args.output_dir)
    if not args.do_train:
        return
    if args.max_steps == 0 or (args.max_steps < 0 and not args.num_train_epochs > 0):
        name = "max_steps" if args.max_steps == 0 else "num_train_epochs"
        raise UsageError(f"{name}={getattr(args, name):g} leaves nothing to train: leave do_train out")
    _check_method(args, model_arguments)
    _check_device(args)
    _check_packages(args)
    _check_scheduler(args, _optimizer(args))


def _check_output_dir(output_dir: str) -> None:
    """Write to the folder, or to the first folder above it that exists. Nothing is left there."""
    folder = Path(output_dir).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    if not folder.is_dir():
        raise UsageError(f"output_dir={output_dir} is not possible: {folder} is a file")
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 16))
            file.flush()
    except OSError as error:
        raise UsageError(f"output_dir={output_dir} cannot be written to: {error.strerror or error}") from error


def _check_trackers(names: list[str]) -> None:
    from transformers.integrations import (
        get_available_reporting_integrations,
        get_reporting_integration_callbacks,
    )

    available = get_available_reporting_integrations()
    for name in names:
        try:
            get_reporting_integration_callbacks([name])
        except ValueError as error:
            close = get_close_matches(name, available, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it must be all, none, or some of {', '.join(available)}"
            raise UsageError(f"report_to={name} is not known: {hint}") from error
        # transformers does not look for flyte, and for azure_ml only where mlflow is missing
        if name not in available and name != "flyte" and not (name == "azure_ml" and "mlflow" in available):
            there = ", ".join(available) or "none"
            raise UsageError(f"report_to={name} needs a package that is not installed: installed are those of {there}")


def _check_method(args: Any, model_arguments: ModelArguments) -> None:
    if args.sam_method == "none":
        return
    folder = Path(model_arguments.model_name_or_path or "")
    if args.sam_method == "nbar" and not model_arguments.lora_r and not (folder / "adapter_config.json").is_file():
        raise UsageError("sam_method=nbar balances LoRA adapters: give lora_r too, or another sam_method")
    optimizer = str(getattr(args.optim, "value", args.optim))
    if "lomo" in optimizer or "layerwise" in optimizer:
        raise UsageError(
            f"optim={optimizer} updates the weights inside the backward pass, which sam_method={args.sam_method} does "
            "not support: give another optim, or sam_method=none"
        )
    if args.deepspeed_plugin is not None:
        raise UsageError(
            f"sam_method={args.sam_method} does not support DeepSpeed, which steps the optimizer inside the backward "
            "pass: use DDP or FSDP2, or sam_method=none"
        )


def _check_device(args: Any) -> None:
    if args.fp16 and args.device.type == "cpu":
        raise UsageError("fp16 needs a GPU: on the CPU the loss is not scaled, so small gradients are lost: give bf16")


def _check_packages(args: Any) -> None:
    from accelerate.utils import DynamoBackend
    from transformers.utils import is_liger_kernel_available

    if args.use_liger_kernel and not is_liger_kernel_available():
        raise UsageError("use_liger_kernel needs liger-kernel: pip install liger-kernel")
    backend = args.torch_compile_backend
    if args.torch_compile and backend.upper() not in DynamoBackend.list():
        known = ", ".join(sorted(name.lower() for name in DynamoBackend.list()))
        raise UsageError(f"torch_compile_backend={backend} is not known: it must be one of {known}")


def _optimizer(args: Any) -> torch.optim.Optimizer:
    """Return the optimizer of the run for a single weight, or SGD if it has to know the model."""
    weight = torch.nn.Parameter(torch.zeros(1))
    name = getattr(args.optim, "value", args.optim)
    try:
        optimizer, options = Trainer.get_optimizer_cls_and_kwargs(args)
        if isinstance(optimizer, type) and optimizer.__module__.startswith("torch.optim"):
            return optimizer([weight], **options)
    except ImportError as error:
        raise UsageError(f"optim={name}: {error}") from error
    except (ValueError, TypeError, KeyError) as error:
        # Some are made for the layers of a model, which is not there yet
        if not str(error).startswith("You need to pass a"):
            given = f" with optim_args={args.optim_args}" if args.optim_args else ""
            raise UsageError(f"optim={name}{given}: {error}") from error
    return torch.optim.SGD([weight], lr=args.learning_rate)


def _check_scheduler(args: Any, optimizer: torch.optim.Optimizer) -> None:
    name = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    steps = max(args.max_steps, 1000)
    try:
        get_scheduler(
            name,
            optimizer,
            num_warmup_steps=args.get_warmup_steps(steps),
            num_training_steps=steps,
            scheduler_specific_kwargs=args.lr_scheduler_kwargs or {},
        )
    except (ValueError, TypeError, KeyError) as error:
        given = f" with lr_scheduler_kwargs={args.lr_scheduler_kwargs}" if args.lr_scheduler_kwargs else ""
        raise UsageError(f"lr_scheduler_type={name}{given}: {error}") from error

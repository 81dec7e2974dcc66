"""One run's settings kept from the next one in the same process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_globals() -> Iterator[None]:
    """
    Give back what [`~transformers.TrainingArguments`] sets for the whole process: variables of the environment
    (`torch_compile`, `fsdp`), `tf32`, `full_determinism`.
    """
    import torch

    variables = dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled()
    cudnn = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    # The name of torch 2.9 and later, which Trainer uses where it is there: torch refuses a mixture with the older one
    precision = getattr(torch.backends, "fp32_precision", None)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(variables)
        torch.use_deterministic_algorithms(deterministic)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn
        if precision is not None:
            setattr(torch.backends, "fp32_precision", precision)  # noqa: B010 (its stubs do not know the name)

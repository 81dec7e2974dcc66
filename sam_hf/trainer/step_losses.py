"""The loss of a training step of any trainer: multiplied where it is made, or read just before the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from .replacing import replaced


@contextmanager
def weighted_by(trainer: Any, share: float | Tensor) -> Iterator[None]:
    """
    Let `compute_loss` of the trainer return its loss multiplied by `share`.

    Every trainer makes its loss there, and a `training_step` of a user's own may do anything with it afterwards. It is
    replaced on the instance, so overrides above and below [`SAMMixin`] are both inside.
    """
    compute_loss, is_inside = trainer.compute_loss, False

    def weighted(*args: Any, **kwargs: Any) -> Any:
        nonlocal is_inside
        if is_inside:  # an override that calls itself again
            return compute_loss(*args, **kwargs)
        is_inside = True
        try:
            result = compute_loss(*args, **kwargs)
        finally:
            is_inside = False
        return (result[0] * share, *result[1:]) if isinstance(result, tuple) else result * share

    with replaced(trainer, compute_loss=weighted):
        yield


def loss_of_step(trainer: Any, step: Callable[[], Any]) -> Tensor:
    """
    Return the loss that a training step hands to its backward pass, which does not run. Call it without gradients.

    Raises:
        NoBackwardError: the step does not call `accelerator.backward`.
    """

    def stop(loss: Tensor, **kwargs: Any) -> None:
        raise _Backward(loss)

    cause = None
    with replaced(trainer.accelerator, backward=stop):
        try:
            step()
        except _Backward as reached:
            return reached.loss.detach()
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            cause = error
    raise NoBackwardError(
        "sam_m below per_device_train_batch_size and sam_ascent_fraction need a training_step that calls "
        f"self.accelerator.backward(loss). That of {type(trainer).__name__} does not. Leave sam_ascent_fraction out, "
        "and give a sam_m that is a multiple of per_device_train_batch_size."
    ) from cause


class NoBackwardError(ValueError):
    """A training step does not make its backward pass as Trainer's does."""


class _Backward(BaseException):
    """A training step has reached its backward pass. No `except Exception` of the step catches this."""

    def __init__(self, loss: Tensor):
        self.loss = loss

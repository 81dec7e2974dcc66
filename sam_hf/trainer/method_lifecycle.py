"""The method of a training run and the length of its steps: made once, told of steps, named for checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..arguments.fields import SAMArguments, method_class
from ..arguments.schedules import follows_steps
from ..methods import Method
from ..tensors.first_moment import check_keeps_first_moment
from ..tensors.lists import local
from ..tensors.step_length import StepLength

# Its name in a checkpoint; methods' own numbers have other ones
_STEP_LENGTH = "last_step_length"


class MethodLifecycle:
    """
    Keeps one method over a run, however often it is asked for; a new one where its arguments change.

    Attributes:
        step_length ([`StepLength`] or `None`): of this run's optimizer, where the radius follows it.
    """

    step_length: StepLength | None = None

    _method: Method | None = None
    _made_of: tuple | None = None
    _bound_to: nn.Module | None = None
    _hooked: Any = None

    def __init__(self) -> None:
        self._handles: list[Any] = []

    def reset(self) -> None:
        """Before a run: nothing is left of the one before."""
        self.release()
        self._method = self._made_of = self._bound_to = self.step_length = None

    def release(self) -> None:
        """After a run: who steps the optimizer now is no affair of the method's. What it keeps can still be saved."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._hooked = [], None

    def method(self, args: SAMArguments, model: nn.Module | None = None, optimizer: Any = None) -> Method:
        """
        Args:
            args (`SAMArguments`): as they are now.
            model (`nn.Module`, *optional*): that the method is to train.
            optimizer (`torch.optim.Optimizer`, *optional*): whose steps it is told of.

        Raises:
            ValueError: the method cannot train this model, or not with this optimizer.
        """
        options: Any = args.sam_method_kwargs or {}
        follows = follows_steps(args)
        made_of = (args.sam_method, args.sam_p, follows, tuple(sorted(options.items())))
        if self._method is None or self._made_of != made_of:
            self.reset()
            self._method, self._made_of = method_class(args)(p=args.sam_p, **options), made_of
            self.step_length = StepLength() if follows else None
        if model is not None and self._bound_to is not model:
            self._method.bind(model)
            self._bound_to = model
        if optimizer is not None and self._hooked is not optimizer:
            self._hook(self._method, optimizer)
        return self._method

    def _hook(self, method: Method, optimizer: Any) -> None:
        """Hooks of the optimizer itself: fp16's scaler does not reach them where it skips a step."""
        self.release()
        if method.perturbs_by_momentum:
            check_keeps_first_moment(optimizer)
        inner = getattr(optimizer, "optimizer", optimizer)  # what accelerate has wrapped
        before = [method.before_step] if type(method).before_step is not Method.before_step else []
        after = [method.after_step] if type(method).after_step is not Method.after_step else []
        if self.step_length is not None:
            # The step alone, and not what a method does to the weights around it
            before, after = [*before, self.step_length.before_step], [self.step_length.after_step, *after]
        self._handles += [inner.register_step_pre_hook(_told(inner, tell)) for tell in before]
        self._handles += [inner.register_step_post_hook(_told(inner, tell)) for tell in after]
        self._hooked = optimizer

    def state(self, names: Mapping[Tensor, str], optimizer: Any) -> dict[str, Tensor]:
        """
        What outlives an update, by `slot/parameter`, and numbers by name.

        Args:
            names: the model's parameters with their names. Others (of a loss module) go by their place in `optimizer`.
        """
        method = self._method
        if method is None:
            return {}
        named = _named(names, optimizer)
        state = {name: number.reshape(1) for name, number in method.numbers.items()}
        if self.step_length is not None and self.step_length.value is not None:
            state[_STEP_LENGTH] = self.step_length.value.reshape(1)
        for slot, tensors in method.tensors.items():
            for parameter, tensor in tensors.items():
                state[f"{slot}/{named[parameter]}"] = tensor.contiguous()
        return state

    def load_state(self, state: Mapping[str, Tensor], names: Mapping[Tensor, str], optimizer: Any) -> None:
        """
        Raises:
            ValueError: `state` is of another model.
        """
        method = self._method
        assert method is not None
        by_name = {name: parameter for parameter, name in _named(names, optimizer).items()}
        device = next(iter(by_name.values())).device
        for key, tensor in state.items():
            if key == _STEP_LENGTH:  # of a checkpoint whose radius followed it; this run's need not
                if self.step_length is not None:
                    self.step_length.value = tensor.reshape(()).to(device)
                continue
            slot, slash, name = key.partition("/")
            if not slash:
                method.numbers[key] = tensor.reshape(()).to(device)
                continue
            parameter = by_name.get(name)
            if parameter is None or local(parameter).shape != tensor.shape:
                raise ValueError(f"{key!r} is of another model")
            method.tensors.setdefault(slot, {})[parameter] = tensor.to(parameter.device)


def _named(names: Mapping[Tensor, str], optimizer: Any) -> dict[Tensor, str]:
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {parameter: f"optimizer/{place}" for place, parameter in enumerate(stepped)} | dict(names)


def _told(optimizer: Any, tell: Callable[[Any], None]) -> Callable[..., None]:
    def hook(*_: Any) -> None:
        # Fused optimizers are called where the scaler found an overflow too, and leave the weights alone themselves
        found = getattr(optimizer, "found_inf", None)
        if found is None or not found.any():
            tell(optimizer)

    return hook

"""The method of a training run: it is made, bound to a model and an optimizer, saved and loaded here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..arguments.fields import SAMArguments
from ..arguments.schedules import method_class, uses_auto_radius
from ..methods import Method
from ..tensors.lists import local
from ..tensors.optimizers import StepLength, check_keeps_first_moment, inside_accelerate
from .step_hooks import StepHooks

# Its name in a checkpoint. The numbers of methods have other names
_STEP_LENGTH = "last_step_length"


class MethodLifecycle:
    """
    Keeps one method over a run, and makes a new one if its arguments change.

    Attributes:
        step_length ([`~sam_hf.tensors.optimizers.StepLength`] or `None`): measures the steps of this run's optimizer,
            if the radius follows them.
    """

    step_length: StepLength | None = None

    _method: Method | None = None
    _made_of: tuple | None = None
    _bound_to: nn.Module | None = None
    _hooked: Any = None
    _hooks: StepHooks | None = None
    _calls_before = 0  # the present update

    def reset(self) -> None:
        """Forget the method of the run before."""
        self.release()
        self._method = self._made_of = self._bound_to = self.step_length = None

    def release(self) -> None:
        """Remove the optimizer hooks. The method's state stays available for saving."""
        if self._hooks is not None:
            self._hooks.remove()
        self._hooks = self._hooked = None

    def method(self, args: SAMArguments, model: nn.Module | None = None, optimizer: Any = None) -> Method:
        """
        Return the run's method, bound to the model and the optimizer.

        Args:
            args (`SAMArguments`): the present arguments.
            model (`nn.Module`, *optional*): the model that the method trains.
            optimizer (`torch.optim.Optimizer`, *optional*): the method is told of its steps.

        Raises:
            ValueError: the method cannot train this model, or not with this optimizer.
        """
        options: Any = args.sam_method_kwargs or {}
        follows = uses_auto_radius(args)
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

    @property
    def has_stepped(self) -> bool:
        """The optimizer has stepped since its hooks were registered. They are where the method needs them."""
        return self._hooks is not None and self._hooks.steps > 0

    def begin_update(self) -> None:
        """Count the steps from here on, see [`check_stepped`]."""
        self._calls_before = 0 if self._hooks is None else self._hooks.calls

    def check_stepped(self, optimizer: Any) -> None:
        """
        Check, after an update that fp16's scaler did not skip, that the hooks on the optimizer were called.

        Raises:
            ValueError: they were not. The method, or its radius, would do nothing for ever.
        """
        if self._hooks is not None and self._hooked is optimizer and self._hooks.calls == self._calls_before:
            name = type(inside_accelerate(optimizer)).__name__
            raise ValueError(
                f"The optimizer {name} was stepped, but not through its method `step`, which sam_method="
                f"{self._made_of[0]!r} has to follow here. Use another optimizer, or sam_method='sam' with a sam_rho."  # type: ignore[index]
            )

    def _hook(self, method: Method, optimizer: Any) -> None:
        self.release()
        if method.perturbs_by_momentum:
            check_keeps_first_moment(optimizer)
        before = [method.before_step] if type(method).before_step is not Method.before_step else []
        after = [method.after_step] if type(method).after_step is not Method.after_step else []
        if self.step_length is not None:
            # It measures the step only, without what a method does to the weights before and after it
            before, after = [*before, self.step_length.before_step], [self.step_length.after_step, *after]
        if before or after or method.perturbs_by_momentum:
            self._hooks = StepHooks(optimizer, before, after)
        self._hooked = optimizer

    def state(self, names: Mapping[Tensor, str], optimizer: Any) -> dict[str, Tensor]:
        """
        Return the state that outlives an update: tensors by `slot/parameter`, and numbers by name.

        Args:
            names: the parameters of the model with their names. Other parameters, of a loss module, are named by their
                place in `optimizer`.
        """
        method = self._method
        if method is None:
            return {}
        all_names = _names_with_places(names, optimizer)
        state = {name: number.reshape(1) for name, number in method.numbers.items()}
        if self.step_length is not None and self.step_length.value is not None:
            state[_STEP_LENGTH] = self.step_length.value.reshape(1)
        for slot, tensors in method.tensors.items():
            for parameter, tensor in tensors.items():
                state[f"{slot}/{all_names[parameter]}"] = tensor.contiguous()
        return state

    def load_state(self, state: Mapping[str, Tensor], names: Mapping[Tensor, str], optimizer: Any) -> None:
        """
        Load what [`state`] returned.

        Raises:
            ValueError: `state` belongs to another model.
        """
        method = self._method
        assert method is not None
        by_name = {name: parameter for parameter, name in _names_with_places(names, optimizer).items()}
        device = next(iter(by_name.values())).device
        for key, tensor in state.items():
            if key == _STEP_LENGTH:  # the radius of the saved run followed it; the radius of this run may not
                if self.step_length is not None:
                    self.step_length.value = tensor.reshape(()).to(device)
                continue
            slot, slash, name = key.partition("/")
            if not slash:
                method.numbers[key] = tensor.reshape(()).to(device)
                continue
            parameter = by_name.get(name)
            if parameter is None or local(parameter).shape != tensor.shape:
                raise ValueError(f"{key!r} belongs to another model")
            method.tensors.setdefault(slot, {})[parameter] = tensor.to(parameter.device)


def _names_with_places(names: Mapping[Tensor, str], optimizer: Any) -> dict[Tensor, str]:
    stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return {parameter: f"optimizer/{place}" for place, parameter in enumerate(stepped)} | dict(names)

"""
What a method is: plain torch, gradients in, perturbation out. Methods know nothing of Trainer, passes or processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer


@dataclass
class Ascent:
    """
    The perturbation ε = ρ · `scale` · `directions`, a vector of norm ρ, before ρ is known.

    Attributes:
        directions: one tensor a parameter, of the parameter's shape.
        scale: 0-dimensional; 0 where there is no perturbation (g = 0, or g is not finite).
        norm: ‖g‖₂, 0-dimensional, in the units of the gradients that came in.
        finite: 0-dimensional bool: every element of g is finite.
    """

    directions: list[Tensor]
    scale: Tensor
    norm: Tensor
    finite: Tensor


@dataclass
class Point:
    """
    Where gradients were taken.

    Attributes:
        parameters: the perturbed parameters that the gradients belong to, in their order.
        weights: their values at w, to read. Not those of `parameters` in later ascent steps.
        names: their own names (`"weight"`, `"bias"`); empty where a parameter is none of the model's.
        loss_scale: the factor that fp16's scaler has put on the gradients, or `None`. What outlives one update must
            be free of it.
    """

    parameters: Sequence[Tensor]
    weights: Sequence[Tensor]
    names: Sequence[str] = ()
    loss_scale: Tensor | None = None


@dataclass
class Products:
    """⟨g, s⟩, ‖g‖² and ‖s‖² over the perturbed parameters, 0-dimensional, and whether they are finite."""

    gs: Tensor
    gg: Tensor
    ss: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Option:
    """A parameter of a method's own, given in `sam_method_kwargs`."""

    default: Any
    help: str
    allowed: str
    accepts: Callable[[Any], bool] = field(repr=False)


@dataclass(frozen=True)
class Cost:
    """Passes an update (a plain one is 1), and copies of the trained weights over plain training at peak, in words."""

    passes: str
    memory: str


class Method:
    """
    How a training method perturbs the weights, and what the optimizer is given.

    A subclass is one file in this folder with its equations, paper and defaults, and one line in `METHODS`. Most
    define `ascent` alone. Everything around it (passes, groups, restoring, schedules, processes, checkpoints) is
    the same for all of them.

    Args:
        p (`float`, *optional*, defaults to `2.0`): order of the perturbation's norm.
        **options: the method's own, by the names in `options`.

    Attributes:
        options: what `sam_method_kwargs` may hold.
        refuses: `sam_*` fields that have no meaning here, each with the reason; they must stay at their defaults.
        combines: `combine` makes the update gradient from g and s; otherwise it is s.
        reuses: `reuse` changes the gradient of the plain updates between two SAM updates.
        perturbs_by_momentum: ε is known before the first pass, from the optimizer; w itself is not visited.
        perturbs: the method has a radius ρ.
        radius_is_a_length: ‖ε‖_p is ρ, in the units of the weights.
        keeps_state: `tensors` and `numbers` are used.
        state_is_shared: they are the same in every process even where each perturbs by its own gradient.
        tensors: what outlives an update, by name and parameter; saved with a checkpoint, as `numbers` are.
        numbers: 0-dimensional tensors that outlive an update, by name.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    citation: ClassVar[str]
    summary: ClassVar[str]
    cost: ClassVar[Cost]
    default_rho: ClassVar[float | None] = None
    default_interval: ClassVar[int] = 1
    options: ClassVar[dict[str, Option]] = {}
    refuses: ClassVar[dict[str, str]] = {}
    combines: ClassVar[bool] = False
    reuses: ClassVar[bool] = False
    perturbs: ClassVar[bool] = True
    radius_is_a_length: ClassVar[bool] = True
    perturbs_by_momentum: ClassVar[bool] = False
    keeps_state: ClassVar[bool] = False
    state_is_shared: ClassVar[bool] = False

    def __init__(self, p: float = 2.0, **options: Any):
        self.p = p
        for name, option in self.options.items():
            setattr(self, _attribute(name), options.get(name, option.default))
        self.tensors: dict[str, dict[Tensor, Tensor]] = {}
        self.numbers: dict[str, Tensor] = {}

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        """
        The perturbation that the ascent gradient asks for.

        Args:
            grads: ascent gradients g, one a perturbed parameter, with the loss scale. They are the method's to
                overwrite. With `perturbs_by_momentum`, the optimizer's first moments instead.
            at ([`Point`]): where they were taken.
        """
        raise NotImplementedError

    def combine(self, g: list[Tensor], s: list[Tensor], products: Products, at: Point) -> None:
        """
        Turn s into the update gradient, in place. Called once an update, on the same numbers in every process.

        Args:
            g: ascent gradients of the whole update, the mean over processes. They are the method's to overwrite.
            s: descent gradients of the whole update, the mean over processes.
        """
        raise NotImplementedError

    def reuse(self, grads: list[Tensor], at: Point) -> None:
        """Change the gradient of a plain update between two SAM updates, in place."""
        raise NotImplementedError

    def bind(self, model: nn.Module) -> None:
        """
        Look at the model, once a run.

        Raises:
            ValueError: the method cannot train this model.
        """

    def begin_update(self, active: bool, progress: float) -> None:
        """
        Before an update's first pass.

        Args:
            active: the update is the method's own, and not a plain one of `sam_interval` or `sam_start_ratio`.
            progress: share of the training that is done, 0 to 1.
        """

    def before_step(self, optimizer: Optimizer) -> None:
        """Just before the optimizer steps; not where fp16's scaler skips the step."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Just after the optimizer has stepped; not where fp16's scaler skipped the step."""


def _attribute(option: str) -> str:
    """`lambda` is no name in Python."""
    return option + "_" if option == "lambda" else option

"""
The base class of the methods. A method is plain torch: gradients in, perturbation out. It knows nothing of Trainer,
passes or processes.
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
    A perturbation ε = ρ · `scale` · `directions` before ρ is known. `scale` · `directions` has norm 1.

    Attributes:
        directions: One tensor per parameter, with the parameter's shape.
        scale: 0-dimensional. 0 if there is no perturbation, because g = 0 or g is not finite.
        norm: ‖g‖₂, 0-dimensional, in the units of the gradients that the method was given.
        finite: 0-dimensional bool: whether every element of g is finite.
    """

    directions: list[Tensor]
    scale: Tensor
    norm: Tensor
    finite: Tensor


@dataclass
class Point:
    """
    The point at which gradients were computed.

    Attributes:
        parameters: The perturbed parameters, in the order of the gradients.
        weights: The values of these parameters at w, to read only. Later ascent steps change `parameters`.
        names: The parameters' own names (`"weight"`, `"bias"`). Empty for a parameter that is not the model's.
        loss_scale: The factor that fp16's scaler has put on the gradients, or `None`. What a method keeps for later
            updates must not contain it.
    """

    parameters: Sequence[Tensor]
    weights: Sequence[Tensor]
    names: Sequence[str] = ()
    loss_scale: Tensor | None = None


@dataclass
class Products:
    """
    Inner products over the perturbed parameters, as 0-dimensional tensors.

    Attributes:
        gs: ⟨g, s⟩.
        gg: ‖g‖².
        ss: ‖s‖².
        finite: Whether all three are finite.
    """

    gs: Tensor
    gg: Tensor
    ss: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Option:
    """
    A parameter of one method, given in `sam_method_kwargs`.

    Attributes:
        default: Its value if none is given.
        help: What it does.
        allowed: Which values are allowed, in words.
        accepts: Whether a value is allowed.
    """

    default: Any
    help: str
    allowed: str
    accepts: Callable[[Any], bool] = field(repr=False)


@dataclass(frozen=True)
class Cost:
    """
    What a method costs, in words.

    Attributes:
        passes: Passes per update; plain training makes 1.
        memory: Copies of the trained weights at the peak, in addition to plain training.
    """

    passes: str
    memory: str


class Method:
    """
    A training method: how it perturbs the weights, and which gradient the optimizer gets.

    A subclass is one file in this folder, with its equations, paper and defaults, and one line in `METHODS`. Most
    subclasses define only `ascent`. Everything else (passes, groups, restoring, schedules, processes, checkpoints) is
    the same for all methods.

    Args:
        p: Order of the perturbation's norm.
        **options: The method's own parameters, by the names in `options`.

    Attributes:
        name: The value of `sam_method`.
        title: The method's full name.
        paper: Address of the paper.
        citation: The paper in BibTeX.
        summary: What the method does, in one sentence.
        cost: Its passes and its memory.
        default_rho: The published ρ.
        default_interval: `sam_interval` if none is given.
        options: What `sam_method_kwargs` may contain.
        refuses: `sam_*` fields that have no meaning for the method, with the reason. They must keep their defaults.
        combines: Whether `combine` makes the update gradient from g and s. Otherwise it is s.
        reuses: Whether `reuse` changes the gradient of the plain updates between two SAM updates.
        perturbs: Whether the method has a radius ρ.
        radius_is_a_length: Whether ‖ε‖_p is ρ, in the units of the weights.
        perturbs_by_momentum: Whether ε comes from the optimizer, before the first pass. Then w itself is not visited.
        keeps_state: Whether the method uses `tensors` and `numbers`.
        state_is_shared: Whether they are the same in all processes even if each perturbs by its own gradient.
        tensors: What outlives an update, by name and parameter. Saved with a checkpoint, as `numbers` are.
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
            attribute = "lambda_" if name == "lambda" else name  # `lambda` is a keyword of Python
            setattr(self, attribute, options.get(name, option.default))
        self.tensors: dict[str, dict[Tensor, Tensor]] = {}
        self.numbers: dict[str, Tensor] = {}

    def ascent(self, grads: list[Tensor], at: Point) -> Ascent:
        """
        Return the perturbation for an ascent gradient.

        Args:
            grads: The ascent gradient g, one tensor per perturbed parameter, with the loss scale. The method may
                overwrite it. With `perturbs_by_momentum`, the optimizer's first moments, which it may not overwrite.
            at: Where the gradient was computed.
        """
        raise NotImplementedError

    def combine(self, g: list[Tensor], s: list[Tensor], products: Products, at: Point) -> None:
        """
        Turn s into the update gradient, in place. Called once per update, with the same numbers in every process.

        Args:
            g: The ascent gradient of the whole update, the mean over processes. The method may overwrite it.
            s: The descent gradient of the whole update, the mean over processes.
            products: Inner products of the two.
            at: Where the gradients were computed.
        """
        raise NotImplementedError

    def reuse(self, grads: list[Tensor], at: Point) -> None:
        """Change the gradient of a plain update between two SAM updates, in place."""
        raise NotImplementedError

    def bind(self, model: nn.Module) -> None:
        """
        Inspect the model, once per run.

        Raises:
            ValueError: The method cannot train this model.
        """

    def begin_update(self, active: bool, progress: float) -> None:
        """
        Prepare an update. Called before its first pass.

        Args:
            active: Whether the update is the method's own. Plain ones come from `sam_interval` or `sam_start_ratio`.
            progress: Share of the training that is done, 0 to 1.
        """

    def before_step(self, optimizer: Optimizer) -> None:
        """Act just before the optimizer steps. Not called if fp16's scaler skips the step."""

    def after_step(self, optimizer: Optimizer) -> None:
        """Act just after the optimizer has stepped. Not called if fp16's scaler skipped the step."""

"""The loss of a model over a dataloader as a function of its weights: values, gradients, Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.utils import logging

from ..compat import uncounted
from ..methods import Ascent
from ..update.model_structure import bare
from ..update.perturbation import Perturbation
from ..update.random_state import random_devices
from . import scope
from .attention import FINITE_DIFFERENCE, PRODUCTS, Attention, describe_product, find_attention
from .derivatives import first_order, second_order
from .examples import draw, examples_in, groups_of, processes, summed
from .graphs import KeptGraphs
from .losses import evaluation_loader, model_loss, trainer_loss
from .weights import chosen_parameters


class LossOracle:
    r"""
    L(w): the mean loss over the examples, as a function of the parameters that are trained, and its derivatives.

    Every measurement runs in evaluation mode (no dropout; BatchNorm by its running statistics), under a fixed seed
    and without autocast: mixed precision is neither refused nor honoured, the loss is that of the float32 weights.
    Weights, buffers, gradients, `requires_grad`, modes and random number generators are afterwards what they were,
    bit for bit, exceptions included. With several processes (`torch.distributed`), sums are taken over all of them,
    each with its own examples, and every process gets the same answer.

    Args:
        model (`nn.Module`):
            The model. What DDP, `nn.DataParallel` and `torch.compile` put around it is taken off.
        dataloader (`Iterable`):
            Batches: dictionaries, as Trainer's loaders give, or what `loss` takes. Read once, and kept in memory:
            shuffling and augmentation would make every product one of another matrix.
        loss (`Callable`, *optional*):
            `loss(model, batch)`, a mean over the batch's examples. Defaults to the loss that the model returns.
        parameters (`Iterable[str]`, *optional*):
            Names of the parameters that make up w. Defaults to those with `requires_grad`: with LoRA, the adapters.
        max_examples (`int`, *optional*):
            Measure on this many examples, over all processes, drawn without replacement from the dataset. All by
            default.
        seed (`int`, *optional*, defaults to `0`):
            Of the draw, of probe vectors, and of whatever a forward pass draws.
        product (`str`, *optional*, defaults to `"auto"`):
            How Hessian-vector products are taken: `"double_backward"` (exact); `"finite_difference"`, the central
            one (∇L(w + hv) − ∇L(w − hv))/2h; or `"auto"`, the first where the model allows it. Fused attention
            kernels have no second derivative: then transformers' eager attention is used within products, or torch's
            unfused kernel, and the log says so.
        finite_difference_step (`float`, *optional*):
            ‖hv‖₂. Defaults to 2 ε^{1/3} with the machine's ε: 0.01 for float32, 1.2e-5 for float64.
        graph_memory (`float`, *optional*, defaults to `0.0`):
            GiB that may be kept between the products of a measurement: batches whose graphs fit take a third less.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            No progress bars. Also obeys `transformers.utils.logging.disable_progress_bar()`.

    Attributes:
        parameters (`dict[str, nn.Parameter]`): w, by name.
        dimension (`int`): the number of elements of w, P.
        batches (`list`): this process's batches.
        step (`float`): ‖hv‖₂ of finite differences.

    Batches weigh by their number of examples, as in Trainer's `eval_loss`. A language model's loss is a mean over
    tokens: there, how examples are put together in batches counts.

    Raises:
        ValueError: bf16 or fp16 weights, sharded ones, no parameter to measure, no example, or an unknown argument.
    """

    def __init__(
        self,
        model: nn.Module,
        dataloader: Iterable[Any],
        *,
        loss: Callable[[nn.Module, Any], Tensor] | None = None,
        parameters: Iterable[str] | None = None,
        max_examples: int | None = None,
        seed: int = 0,
        product: str = "auto",
        finite_difference_step: float | None = None,
        graph_memory: float = 0.0,
        disable_tqdm: bool = False,
    ):
        if product not in PRODUCTS:
            raise ValueError(f"product={product!r}: one of {', '.join(PRODUCTS)}")
        if finite_difference_step is not None and not finite_difference_step > 0:
            raise ValueError(f"finite_difference_step={finite_difference_step}: a number > 0, or None")
        self.model = bare(model)
        self.parameters = chosen_parameters(self.model, parameters)
        self.seed = seed
        self.dimension = sum(p.numel() for p in self.parameters.values())
        first = next(iter(self.parameters.values()))
        self.device, self.dtype = first.device, first.dtype
        self.step = finite_difference_step or 2 * torch.finfo(self.dtype).eps ** (1 / 3)
        self._loss = loss or model_loss
        self._trainer: Any = None
        self._product = product
        self._attention: Attention | None = None
        self._disable_tqdm = disable_tqdm or processes()[0] > 0
        self._devices = random_devices({p.device for p in self.model.parameters()})
        self._inside = False
        self._graphs = KeptGraphs(graph_memory)
        with scope.random_state_kept(self._devices):
            scope.seed_everything(seed, self._devices)
            self.batches = draw(dataloader, max_examples, seed)
        if self.over_processes(sum(map(examples_in, self.batches))) == 0:
            raise ValueError("The dataloader gave no example to measure on.")

    @classmethod
    def from_trainer(cls, trainer: Any, dataset: Any = None, **options: Any) -> LossOracle:
        """
        The loss that a [`~transformers.Trainer`] computes with `compute_loss`, label smoothing and
        `compute_loss_func` included.

        Args:
            trainer ([`~transformers.Trainer`]):
                Its model as it is now, in any state of training.
            dataset (`Dataset`, *optional*):
                Defaults to its `train_dataset`, whose loss is the one that has a minimum. Batched and collated as for
                evaluation (`per_device_eval_batch_size`).
            options:
                As of the class.
        """
        dataset = trainer.train_dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError("dataset=None, and the trainer has no train_dataset: give the dataset to measure on")
        if options.get("max_examples") is None and hasattr(dataset, "__len__"):
            # All of it, dealt here: accelerate repeats examples until all processes have the same number
            options["max_examples"] = max(len(dataset), 1)
        options.setdefault("disable_tqdm", trainer.args.disable_tqdm)
        oracle = cls(
            trainer.model,
            evaluation_loader(trainer, dataset),
            loss=lambda model, batch: trainer_loss(trainer, model, batch),
            **options,
        )
        oracle._trainer = trainer
        return oracle

    def loss(self) -> float:
        """L(w), over all processes."""
        total, examples = self._loss_sum(self.batches)
        return self.over_processes(total) / self.over_processes(examples)

    def gradient(self) -> Tensor:
        """∇L(w), over all processes, as a vector of shape `(P,)` in the order of `parameters`."""
        return self._mean(*self._gradient_sum(self.batches))

    def hvp(self, vectors: Tensor) -> Tensor:
        """
        ∇²L(w) v, over all processes.

        Args:
            vectors (`Tensor`): of shape `(P,)`, or `(k, P)` for k products that share their passes forward.

        Returns:
            `Tensor`: of the same shape.
        """
        if vectors.shape[-1:] != (self.dimension,) or vectors.dim() not in (1, 2):
            raise ValueError(f"vectors of shape {tuple(vectors.shape)}: ({self.dimension},) or (k, {self.dimension})")
        rows = vectors.detach().reshape(-1, self.dimension).to(self.device, self.dtype)
        with self.measuring():
            if self._attention is None:
                self._attention = find_attention(self, self._product)
            if self._attention is FINITE_DIFFERENCE:
                result = torch.stack([self.difference(row, self.gradient) for row in rows])
            else:
                with self._attention.scope():
                    result = self._mean(*self._product_sum(rows))
        return result.reshape(vectors.shape)

    @property
    def product(self) -> tuple[str, str]:
        """How products are taken, and with which attention; empty as long as none was taken."""
        return describe_product(self._attention)

    def groups(self, m: int | None = None) -> list[list[Any]]:
        """This process's examples in groups of `m`; as they are batched by default. For `loss_on`, `gradient_on`."""
        return groups_of(self.batches, m)

    def loss_on(self, batches: Sequence[Any]) -> float:
        """The mean loss over some batches, of this process alone."""
        total, examples = self._loss_sum(batches)
        return total / examples

    def gradient_on(self, batches: Sequence[Any]) -> Tensor:
        """Its gradient, of shape `(P,)`."""
        total, examples = self._gradient_sum(batches)
        return total.div_(examples)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector of shape `(P,)` as one view a parameter, of the parameter's shape."""
        parts = vector.split([p.numel() for p in self.parameters.values()])
        return [part.view_as(p) for part, p in zip(parts, self.parameters.values(), strict=True)]

    def progress(self, total: int, description: str) -> Any:
        """A progress bar as transformers makes them, on the first process alone."""
        return logging.tqdm(total=total, desc=description, disable=self._disable_tqdm)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Evaluation mode and all that goes with it, for several measurements in one go. Kept graphs last as long."""
        if self._inside:
            yield
            return
        with ExitStack() as stack:
            stack.enter_context(scope.random_state_kept(self._devices))
            stack.enter_context(scope.only_trained(self.model, list(self.parameters.values())))
            stack.enter_context(scope.in_evaluation(self.model))
            stack.enter_context(scope.full_precision(self.model, self.device))
            if self._trainer is not None:
                stack.enter_context(uncounted(self._trainer))
            self._inside = True
            stack.callback(setattr, self, "_inside", False)
            stack.callback(self._graphs.clear)
            yield

    # --- Passes: sums over this process's examples, and how many they are ---------------------------------------

    def passes(self, batches: Sequence[Any]) -> Iterator[tuple[Any, int]]:
        """The batches on the device, each with its number of examples, from the seed on."""
        scope.seed_everything(self.seed, self._devices)
        for batch in batches:
            yield send_to_device(batch, self.device), examples_in(batch)

    def _loss_sum(self, batches: Sequence[Any]) -> tuple[float, int]:
        total, examples = 0.0, 0
        with self.measuring(), torch.no_grad():
            for batch, size in self.passes(batches):
                total += size * float(self.value(batch))
                examples += size
        return total, examples

    def _gradient_sum(self, batches: Sequence[Any]) -> tuple[Tensor, int]:
        total, examples = torch.zeros(self.dimension, dtype=self.dtype, device=self.device), 0
        weights = list(self.parameters.values())
        with self.measuring(), torch.enable_grad():
            for batch, size in self.passes(batches):
                self._add(total, first_order(self.value(batch), weights), size)
                examples += size
        return total, examples

    def _product_sum(self, rows: Tensor) -> tuple[Tensor, int]:
        total, examples = torch.zeros_like(rows), 0
        weights = list(self.parameters.values())
        with torch.enable_grad():
            for number, (batch, size) in enumerate(self.passes(self.batches)):
                gradient, kept = self._graphs.gradient(number, weights, partial(self.value, batch))
                for index, row in enumerate(rows):
                    again = kept or index + 1 < len(rows)
                    self._add(total[index], second_order(gradient, weights, self.split(row), again), size)
                examples += size
        return total, examples

    def value(self, batch: Any) -> Tensor:
        """The loss of one batch on the device."""
        return self._loss(self.model, batch)

    def difference(self, row: Tensor, gradient: Callable[[], Tensor]) -> Tensor:
        """The product as a central difference of gradients."""
        norm = float(row.norm())
        if norm == 0:
            return torch.zeros_like(row)
        ends = []
        for sign in (1, -1):
            with Perturbation() as perturbation:
                self.perturb(perturbation, row.clone(), sign * self.step / norm)
                ends.append(gradient())
        return ends[0].sub_(ends[1]).mul_(norm / (2 * self.step))

    def perturb(self, perturbation: Perturbation, direction: Tensor, radius: float) -> None:
        """Add `radius` · `direction` to w. Overwrites `direction`, of shape `(P,)`."""
        one = torch.ones((), dtype=self.dtype, device=self.device)
        ascent = Ascent(self.split(direction), one, one, torch.ones_like(one, dtype=torch.bool))
        perturbation.add(list(self.parameters.values()), ascent, radius)

    def _add(self, total: Tensor, parts: Sequence[Tensor], factor: int) -> None:
        for place, part in zip(self.split(total), parts, strict=True):
            place.add_(part.detach(), alpha=factor)

    def over_processes(self, number: float) -> float:
        """The sum of the processes' numbers."""
        return summed(number, self.device)

    def _mean(self, total: Tensor, examples: int) -> Tensor:
        if processes()[1] > 1:
            dist.all_reduce(total)
        return total.div_(self.over_processes(examples))

"""The loss of a model over a dataloader as a function of its weights: values, gradients, Hessian-vector products."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from accelerate.utils import extract_model_from_parallel, send_to_device
from torch import Tensor, nn
from transformers.utils import logging

from ..compat import uncounted
from ..methods import Ascent
from ..update.perturbation import Perturbation
from ..update.random_state import random_devices
from .attention import FINITE_DIFFERENCE, PRODUCTS, Attention, describe_product, find_attention
from .checks import check, chosen_parameters
from .examples import draw, examples_in, groups_of, processes, summed
from .losses import KeptGraphs, evaluation_loader, first_order, model_loss, second_order, trainer_loss
from .measuring import measuring, preserved_random_state, seed_everything


class LossOracle:
    r"""
    L(w), the mean loss over the examples as a function of the trained parameters, and its derivatives.

    Every measurement runs in evaluation mode (no dropout, BatchNorm with its running statistics), under a fixed seed
    and without autocast: under mixed precision too, the loss is that of the float32 weights. Afterwards weights,
    buffers, gradients, `requires_grad`, modes and random number generators are what they were, bit for bit, also after
    an exception. With several processes (`torch.distributed`), each has its own examples, sums are taken over all of
    them, and every process gets the same result.

    Batches are weighted by their number of examples, as in Trainer's `eval_loss`. The loss of a language model is a
    mean over tokens, so there the result depends on which examples share a batch.

    Args:
        model (`nn.Module`):
            The model. Wrappers of DDP, `nn.DataParallel` and `torch.compile` are removed.
        dataloader (`Iterable`):
            Batches: dictionaries, as from Trainer's loaders, or what `loss` takes. They are read once and kept in
            memory. If they were shuffled or augmented again, each product would use a different matrix.
        loss (`Callable`, *optional*):
            `loss(model, batch)`, a mean over the batch's examples. Defaults to the loss that the model returns.
        parameters (`Iterable[str]`, *optional*):
            Names of the parameters that make up w. Defaults to those with `requires_grad`: with LoRA, the adapters.
        max_examples (`int`, *optional*):
            The number of examples over all processes, drawn without replacement from the dataset. Defaults to all.
        seed (`int`, *optional*, defaults to `0`):
            The seed of the draw, of probe vectors, and of the random numbers in a forward pass.
        product (`str`, *optional*, defaults to `"auto"`):
            How Hessian-vector products are computed: `"double_backward"` (exact), `"finite_difference"` (central,
            (∇L(w + hv) − ∇L(w − hv))/2h), or `"auto"`, the first if the model allows it. Fused attention kernels have
            no second derivative. In their place, products use transformers' eager attention or torch's unfused kernel,
            which is logged.
        finite_difference_step (`float`, *optional*):
            ‖hv‖₂. Defaults to 2 ε^{1/3} with the machine's ε: 0.01 for float32, 1.2e-5 for float64.
        graph_memory (`float`, *optional*, defaults to `0.0`):
            GiB of graphs to keep between the products of a measurement. Products take a third less time on the batches
            whose graphs fit.
        disable_tqdm (`bool`, *optional*, defaults to `False`):
            Show no progress bars. `transformers.utils.logging.disable_progress_bar()` has the same effect.

    Attributes:
        parameters (`dict[str, nn.Parameter]`): w, by name.
        weights (`list[nn.Parameter]`): the same without names.
        dimension (`int`): the number of elements of w, P.
        batches (`list`): this process's batches.
        finite_difference_step (`float`): ‖hv‖₂.

    Raises:
        ValueError: the weights are in bf16 or fp16 or sharded, there is no parameter or no example to measure, or an
            argument is not allowed.
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
        check("product", product, product in PRODUCTS, f"one of {', '.join(PRODUCTS)}")
        h = finite_difference_step
        check("finite_difference_step", h, h is None or h > 0, "a number > 0, or None")
        for _ in range(2):  # a call removes torch.compile, then DDP: twice for a compiled model in DDP
            model = extract_model_from_parallel(model, keep_torch_compile=False)
        self.model = model
        self.parameters = chosen_parameters(model, parameters)
        self.seed = seed
        self.weights = list(self.parameters.values())
        self.dimension = sum(p.numel() for p in self.weights)
        self.device, self.dtype = self.weights[0].device, self.weights[0].dtype
        self.finite_difference_step = h or 2 * torch.finfo(self.dtype).eps ** (1 / 3)
        self._loss = loss or model_loss
        self._trainer: Any = None
        self._product = product
        self._attention: Attention | None = None
        self._disable_tqdm = disable_tqdm or processes()[0] > 0
        self._devices = random_devices({p.device for p in model.parameters()})
        self._is_measuring = False
        self._graphs = KeptGraphs(graph_memory)
        with preserved_random_state(self._devices):
            seed_everything(seed, self._devices)
            self.batches = draw(dataloader, max_examples, seed)
        if self.over_processes(sum(map(examples_in, self.batches))) == 0:
            raise ValueError("The dataloader has no example to measure on.")

    @classmethod
    def from_trainer(cls, trainer: Any, dataset: Any = None, **options: Any) -> LossOracle:
        """
        Return an oracle of the loss that a [`~transformers.Trainer`] computes with `compute_loss`, including label
        smoothing and `compute_loss_func`.

        Args:
            trainer ([`~transformers.Trainer`]):
                Its current model is measured, at any time of the training.
            dataset (`Dataset`, *optional*):
                The dataset, batched and collated as for evaluation (`per_device_eval_batch_size`). Defaults to the
                `train_dataset`, since the minimum is that of the training loss.
            **options:
                Other arguments of the class.
        """
        dataset = trainer.train_dataset if dataset is None else dataset
        if dataset is None:
            raise ValueError("dataset=None, and the trainer has no train_dataset. Give a dataset to measure on.")
        if options.get("max_examples") is None and hasattr(dataset, "__len__"):
            # This draws all examples: accelerate's loader would repeat some so that all processes get the same number
            options["max_examples"] = max(len(dataset), 1)
        options.setdefault("disable_tqdm", trainer.args.disable_tqdm)
        loader = evaluation_loader(trainer, dataset)
        oracle = cls(trainer.model, loader, loss=partial(trainer_loss, trainer), **options)
        oracle._trainer = trainer
        return oracle

    def loss(self) -> float:
        """Return L(w) over all processes."""
        total, examples = self._loss_sum(self.batches)
        return self.over_processes(total) / self.over_processes(examples)

    def gradient(self) -> Tensor:
        """Return ∇L(w) over all processes, a vector of shape `(P,)` in the order of `parameters`."""
        return self._mean(*self._gradient_sum(self.batches))

    def hvp(self, vectors: Tensor) -> Tensor:
        """
        Return ∇²L(w) v over all processes.

        Args:
            vectors (`Tensor`): of shape `(P,)`, or `(k, P)` for k products that share their forward passes.

        Returns:
            `Tensor`: of the same shape.
        """
        allowed = vectors.shape[-1:] == (self.dimension,) and vectors.dim() in (1, 2)
        check("vectors.shape", tuple(vectors.shape), allowed, f"({self.dimension},) or (k, {self.dimension})")
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
        """How products are computed and with which attention; both are empty before the first product."""
        return describe_product(self._attention)

    def groups(self, m: int | None = None) -> list[list[Any]]:
        """Return this process's examples in groups of `m`, by default one per batch, for `loss_on`, `gradient_on`."""
        return list(groups_of(self.batches, m))

    def loss_on(self, batches: Sequence[Any]) -> float:
        """Return the mean loss over some batches, of this process only."""
        total, examples = self._loss_sum(batches)
        return total / examples

    def gradient_on(self, batches: Sequence[Any]) -> Tensor:
        """Return the gradient of `loss_on`, of shape `(P,)`."""
        total, examples = self._gradient_sum(batches)
        return total.div_(examples)

    def split(self, vector: Tensor) -> list[Tensor]:
        """Return a vector of shape `(P,)` as one view per parameter, of the parameter's shape."""
        parts = vector.split([p.numel() for p in self.weights])
        return [part.view_as(p) for part, p in zip(parts, self.weights, strict=True)]

    def progress(self, total: int, description: str) -> Any:
        """Return a progress bar as transformers makes them, shown by the first process only."""
        return logging.tqdm(total=total, desc=description, disable=self._disable_tqdm)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Prepare the model once for all measurements inside. Kept graphs are freed at the end."""
        if self._is_measuring:
            yield
            return
        counters = nullcontext() if self._trainer is None else uncounted(self._trainer)
        with measuring(self.model, self.weights, self._devices), counters:
            self._is_measuring = True
            try:
                yield
            finally:
                self._is_measuring = False
                self._graphs.clear()

    def seeded(self, batches: Sequence[Any]) -> Iterator[tuple[Any, int]]:
        """Seed the generators, and yield the batches on the device, each with its number of examples."""
        seed_everything(self.seed, self._devices)
        for batch in batches:
            yield send_to_device(batch, self.device), examples_in(batch)

    def batch_loss(self, batch: Any) -> Tensor:
        """Return the loss of one batch that is on the device."""
        return self._loss(self.model, batch)

    def difference(self, vector: Tensor, gradient: Callable[[], Tensor]) -> Tensor:
        """Return a Hessian-vector product as a central difference of gradients."""
        norm = float(vector.norm())
        if norm == 0:
            return torch.zeros_like(vector)
        ends = []
        for sign in (1, -1):
            with Perturbation() as perturbation:
                self.perturb(perturbation, vector.clone(), sign * self.finite_difference_step / norm)
                ends.append(gradient())
        return ends[0].sub_(ends[1]).mul_(norm / (2 * self.finite_difference_step))

    def perturb(self, perturbation: Perturbation, direction: Tensor, radius: float) -> None:
        """Add `radius` · `direction` to w. Overwrites `direction`, of shape `(P,)`."""
        one = torch.ones((), dtype=self.dtype, device=self.device)
        ascent = Ascent(self.split(direction), one, one, torch.ones_like(one, dtype=torch.bool))
        perturbation.add(self.weights, ascent, radius)

    def over_processes(self, number: float) -> float:
        """Return the sum of the number over all processes."""
        return summed(number, self.device)

    def _loss_sum(self, batches: Sequence[Any]) -> tuple[float, int]:
        total, examples = 0.0, 0
        with self.measuring(), torch.no_grad():
            for batch, size in self.seeded(batches):
                total += size * float(self.batch_loss(batch))
                examples += size
        return total, examples

    def _gradient_sum(self, batches: Sequence[Any]) -> tuple[Tensor, int]:
        total, examples = torch.zeros(self.dimension, dtype=self.dtype, device=self.device), 0
        with self.measuring(), torch.enable_grad():
            for batch, size in self.seeded(batches):
                self._add(total, first_order(self.batch_loss(batch), self.weights), size)
                examples += size
        return total, examples

    def _product_sum(self, rows: Tensor) -> tuple[Tensor, int]:
        total, examples = torch.zeros_like(rows), 0
        with torch.enable_grad():
            for number, (batch, size) in enumerate(self.seeded(self.batches)):
                gradient, is_kept = self._graphs.gradient(number, self.weights, partial(self.batch_loss, batch))
                for index, row in enumerate(rows):
                    retain_graph = is_kept or index + 1 < len(rows)
                    self._add(total[index], second_order(gradient, self.weights, self.split(row), retain_graph), size)
                examples += size
        return total, examples

    def _add(self, total: Tensor, parts: Sequence[Tensor], factor: int) -> None:
        for view, part in zip(self.split(total), parts, strict=True):
            view.add_(part.detach(), alpha=factor)

    def _mean(self, total: Tensor, examples: int) -> Tensor:
        if processes()[1] > 1:
            dist.all_reduce(total)
        return total.div_(self.over_processes(examples))

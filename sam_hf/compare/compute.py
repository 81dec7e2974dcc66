"""What a variant costs in passes over its examples, and the baseline trained for as long."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .plan import Plan, Run, Variant, describe

if TYPE_CHECKING:
    from ..arguments.fields import SAMArguments


def passes(args: SAMArguments) -> float:
    """
    Forward and backward passes over an update's examples, in the mean over training; plain training takes 1.

    A mask (`sam_target_modules`) is not counted: it saves up to a third of the second pass, which depends on the
    model. So the baseline is given too much compute rather than too little.
    """
    from ..methods import METHODS

    method = METHODS.get(args.sam_method)
    if method is None or not method.perturbs or method.perturbs_by_momentum or args.sam_rho == 0:
        return 1.0
    interval = args.sam_interval or method.default_interval
    return 1 + args.sam_ascent_steps * args.sam_ascent_fraction * (1 - args.sam_start_ratio) / interval


def with_twins(plan: Plan, equal_compute: Any, parse: Callable[[Run], tuple[Any, ...]], path: str) -> Plan:
    """
    `plan` with what every variant costs, and whom it is to be compared with at equal compute.

    Args:
        equal_compute: `None`, `"auto"`, or the variant that trains the baseline for longer.
        parse: gives the recipe's argument objects for a run, the training arguments last, or raises `UsageError`.
    """
    noise, seed = plan.label_noise[0], plan.seeds[0]
    arguments = {
        v.name: [parse(plan.final_run(v.name, choice, noise, seed))[-1] for choice in v.grid]
        for v in plan.variants.values()
    }
    cost = {name: tuple(_length(args) * passes(args) for args in each) for name, each in arguments.items()}
    plan = replace(plan, compute=cost)
    if equal_compute is None or equal_compute is False:
        return replace(plan, twins={v.name: (None,) * len(v.grid) for v in plan.variants.values()})
    if equal_compute == "auto":
        return _automatic(plan, arguments, path)
    if equal_compute not in plan.variants or equal_compute == plan.baseline:
        names = ", ".join(["auto", *(name for name in plan.variants if name != plan.baseline)])
        raise UsageError(f"{path}: equal_compute={equal_compute} is not allowed: it must be one of {names}")
    return replace(
        plan,
        twins={
            v.name: (None if v.name in (plan.baseline, equal_compute) else equal_compute,) * len(v.grid)
            for v in plan.variants.values()
        },
    )


def _automatic(plan: Plan, arguments: Mapping[str, list[Any]], path: str) -> Plan:
    baseline = plan.variants[plan.baseline]
    own = arguments[plan.baseline]
    if len({(passes(args), _length(args)) for args in own}) > 1 or len({_counts_steps(args) for args in own}) > 1:
        grid = "; ".join(describe(choice) for choice in baseline.grid)
        raise UsageError(f"{path}: equal_compute=auto needs a baseline whose compute its grid ({grid}) keeps")
    variants, twins, compute = dict(plan.variants), {}, dict(plan.compute)
    for variant in plan.variants.values():
        names: list[str | None] = []
        for args, cost in zip(arguments[variant.name], plan.compute[variant.name], strict=True):
            if _counts_steps(args) != _counts_steps(own[0]):
                raise UsageError(
                    f"{path}: equal_compute=auto: {variant.name} and {baseline.name} must both give max_steps"
                )
            twin = _twin(baseline, own[0], cost)
            if variant.name == baseline.name:
                names.append(None)
                continue
            same = next((v for v in variants.values() if v.options == twin.options and v.grid == twin.grid), None)
            if same is None:
                variants[twin.name] = same = twin
                compute[twin.name] = (cost,) * len(twin.grid)
            names.append(None if same.name == variant.name else same.name)
        twins[variant.name] = tuple(names)
    for name in variants.keys() - twins.keys():
        twins[name] = (None,) * len(variants[name].grid)
    return replace(plan, variants=variants, twins=twins, compute=compute)


def _twin(baseline: Variant, args: Any, cost: float) -> Variant:
    """The baseline, trained until it has had `cost`; itself where that is its own."""
    ratio = cost / (passes(args) * _length(args))
    if math.isclose(ratio, 1):
        return baseline
    if _counts_steps(args):
        steps = math.ceil(round(args.max_steps * ratio, 6))
        return Variant(
            f"{baseline.name}, {steps} steps", {**baseline.options, "max_steps": steps}, baseline.grid, True
        )
    epochs = round(args.num_train_epochs * ratio, 6)
    options = {**baseline.options, "num_train_epochs": epochs}
    return Variant(f"{baseline.name}, {epochs:g} epochs", options, baseline.grid, True)


def _counts_steps(args: Any) -> bool:
    return args.max_steps > 0


def _length(args: Any) -> float:
    """Of training, in epochs or, where they are given, updates."""
    return args.max_steps if _counts_steps(args) else args.num_train_epochs

"""The compute of a variant, counted in passes over its examples, and the baseline trained for as long."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from .plan import Plan, Run, Variant, describe

if TYPE_CHECKING:
    from ..arguments.fields import SAMArguments


def passes_per_update(args: SAMArguments) -> float:
    """
    Return the forward and backward passes over an update's examples, as a mean over training. Plain training takes 1.

    The saving of a mask (`sam_target_modules`) is not counted. It is up to a third of the second pass and depends on
    the model. So the baseline gets too much compute rather than too little.
    """
    from ..methods import METHODS

    method = METHODS.get(args.sam_method)
    if method is None or not method.perturbs or method.perturbs_by_momentum or args.sam_rho == 0:
        return 1.0
    interval = args.sam_interval or method.default_interval
    return 1 + args.sam_ascent_steps * args.sam_ascent_fraction * (1 - args.sam_start_ratio) / interval


def with_equal_compute(plan: Plan, equal_compute: str | None, parse: Callable[[Run], Any], path: str) -> Plan:
    """
    Return `plan` with the compute of every variant, and its twin: the variant to compare it with at equal compute.

    Args:
        equal_compute: `None`, `"auto"`, or the variant that trains the baseline for longer.
        parse: returns the training arguments of a run, or raises `UsageError`.
    """
    noise, seed = plan.label_noise[0], plan.seeds[0]
    arguments = {
        v.name: [parse(plan.final_run(v.name, choice, noise, seed)) for choice in v.grid]
        for v in plan.variants.values()
    }
    compute = {name: tuple(_length(args) * passes_per_update(args) for args in a) for name, a in arguments.items()}
    plan = replace(plan, compute=compute, twins={v.name: (None,) * len(v.grid) for v in plan.variants.values()})
    if equal_compute is None:
        return plan
    if equal_compute == "auto":
        return _with_longer_baselines(plan, arguments, path)
    if equal_compute not in plan.variants or equal_compute == plan.baseline:
        names = ", ".join(["auto", *(name for name in plan.variants if name != plan.baseline)])
        raise UsageError(f"{path}: equal_compute={equal_compute} is not allowed: it must be one of {names}")
    others = plan.variants.keys() - {plan.baseline, equal_compute}
    return replace(plan, twins={**plan.twins, **{name: (equal_compute,) * len(plan.twins[name]) for name in others}})


def _with_longer_baselines(plan: Plan, arguments: Mapping[str, list[Any]], path: str) -> Plan:
    """Add a variant for each different compute that trains the baseline for as long, unless there is one already."""
    baseline = plan.variants[plan.baseline]
    if len({(passes_per_update(a), _length(a), _counts_steps(a)) for a in arguments[plan.baseline]}) > 1:
        grid = "; ".join(describe(choice) for choice in baseline.grid)
        raise UsageError(f"{path}: equal_compute=auto needs a baseline with the same compute for all of {grid}")
    first = arguments[plan.baseline][0]
    variants, twins, compute = dict(plan.variants), dict(plan.twins), dict(plan.compute)
    for variant in plan.variants.values():
        names: list[str | None] = []
        for args, cost in zip(arguments[variant.name], plan.compute[variant.name], strict=True):
            if _counts_steps(args) != _counts_steps(first):
                raise UsageError(
                    f"{path}: equal_compute=auto: {variant.name} and {baseline.name} must both give max_steps"
                )
            longer = _trained_longer(baseline, first, cost)
            twin = next((v for v in variants.values() if v.options == longer.options and v.grid == longer.grid), None)
            if twin is None:
                variants[longer.name] = twin = longer
                twins[longer.name] = (None,) * len(longer.grid)
                compute[longer.name] = (cost,) * len(longer.grid)
            names.append(None if twin.name == variant.name or variant is baseline else twin.name)
        twins[variant.name] = tuple(names)
    return replace(plan, variants=variants, twins=twins, compute=compute)


def _trained_longer(baseline: Variant, args: Any, compute: float) -> Variant:
    """Return a variant that trains the baseline until it has used `compute`, or the baseline if it already does."""
    ratio = compute / (passes_per_update(args) * _length(args))
    if math.isclose(ratio, 1):
        return baseline
    if _counts_steps(args):
        steps = math.ceil(round(args.max_steps * ratio, 6))
        name, options = f"{baseline.name}, {steps} steps", {"max_steps": steps}
    else:
        epochs = round(args.num_train_epochs * ratio, 6)
        name, options = f"{baseline.name}, {epochs:g} epochs", {"num_train_epochs": epochs}
    return Variant(name, {**baseline.options, **options}, baseline.grid, made=True)


def _counts_steps(args: Any) -> bool:
    return args.max_steps > 0


def _length(args: Any) -> float:
    """Return the length of training: in updates if `max_steps` is given, otherwise in epochs."""
    return args.max_steps if _counts_steps(args) else args.num_train_epochs

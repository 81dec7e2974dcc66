"""Reading the YAML file of a comparison. All options are checked before the first run starts."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..command_line import parse_arguments
from ..command_line.config import read_yaml
from ..errors import UsageError
from ..recipes import RECIPES, recipe_argument_types
from .compute import with_equal_compute
from .plan import Plan, Run, Selection, Variant, describe, refuse_shared_options, split_grid, without_shared_options
from .worker import restored_globals, write_config

_KEYS = "recipe base methods baseline seeds label_noise equal_compute select metric greater_is_better".split()
# Options that do not change what a run computes
_PLACES = ("output_dir", "logging_dir", "run_name")


def read_plan(path: str) -> Plan:
    """
    Return the plan that the file at `path` describes. docs/compare.md lists its keys.

    Raises:
        UsageError: the file holds something unknown or something that the recipe would refuse.
    """
    content = read_yaml(path)
    for key in content:
        if key not in _KEYS:
            close = get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(_KEYS)}"
            raise UsageError(f"{path}: unknown key {key}: {hint}")
    recipe = content.get("recipe")
    if not isinstance(recipe, str) or recipe not in RECIPES:
        raise UsageError(f"{path}: recipe={recipe} is not allowed: it must be {' or '.join(RECIPES)}")
    seeds = _integers(content.get("seeds"), f"{path}: seeds")
    select = _selection(content.get("select"), seeds, path)
    variants = _variants(content, select, path)
    baseline = str(content.get("baseline"))
    if baseline not in variants:
        raise UsageError(f"{path}: baseline={baseline} is not allowed: it must be one of {', '.join(variants)}")
    metric = _metric(content.get("metric"), path)
    plan = Plan(
        recipe=recipe,
        variants=variants,
        baseline=baseline,
        seeds=seeds,
        label_noise=_noise(content.get("label_noise", [0.0]), path),
        select=select,
        metric=metric,
        greater_is_better=_greater_is_better(content.get("greater_is_better"), metric, path),
    )
    settings = _Settings()
    _refuse_equal_variants(plan, settings, path)
    return with_equal_compute(plan, _equal_compute(content.get("equal_compute")), settings.training_arguments, path)


def _variants(content: Mapping[str, Any], select: Selection | None, path: str) -> dict[str, Variant]:
    base = _mapping(content.get("base"), f"{path}: base")
    config = base.pop("config", None)
    if config is not None and not isinstance(config, str):
        raise UsageError(f"{path}: base: config={config} is not allowed: it must be the path of a file")
    refuse_shared_options(base, f"{path}: base")
    base = {**(without_shared_options(read_yaml(config)) if config is not None else {}), **base}
    variants: dict[str, Variant] = {}
    for name, given in _mapping(content.get("methods"), f"{path}: methods").items():
        options = _mapping(given, f"{path}: methods: {name}")
        refuse_shared_options(options, f"{path}: methods: {name}")
        if str(name) in variants:
            raise UsageError(f"{path}: methods: {name} is given twice: give each variant a name of its own")
        fixed, grid = split_grid(options)
        if not grid:
            raise UsageError(f"{path}: methods: {name}: a list of values must not be empty")
        if select is not None or len(grid) == 1:
            variants[str(name)] = Variant(str(name), {**base, **fixed}, grid)
        else:
            for choice in grid:
                full = f"{name} ({describe(choice)})"
                if full in variants:
                    raise UsageError(f"{path}: methods: {full} is given twice")
                variants[full] = Variant(full, {**base, **fixed, **choice})
    if not variants:
        raise UsageError(f"{path}: methods: there must be at least one")
    return variants


class _Settings:
    """What the recipe reads from the options of runs. Each run is read once."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[Any, ...]] = {}

    def of(self, run: Run) -> tuple[Any, ...]:
        """Return the dataclasses of the recipe's options, or raise the error that the recipe would raise."""
        if run.key not in self._known:
            self._known[run.key] = self._read(run)
        return self._known[run.key]

    def training_arguments(self, run: Run) -> Any:
        return self.of(run)[-1]

    def values(self, run: Run) -> list[dict[str, Any]]:
        """Return the value of every option, except of those that say where results go."""
        return [
            {f.name: getattr(part, f.name) for f in fields(part) if f.name not in _PLACES} for part in self.of(run)
        ]

    def _read(self, run: Run) -> tuple[Any, ...]:
        with tempfile.TemporaryDirectory() as folder, restored_globals():
            config = write_config(run, Path(folder))
            try:
                return parse_arguments(recipe_argument_types(run.recipe), ["--config", str(config)], "")
            except UsageError as error:
                message = str(error).replace(f"{config}: ", "")
                raise UsageError(f"methods: {run.variant}: {message}") from error


def _refuse_equal_variants(plan: Plan, settings: _Settings, path: str) -> None:
    """
    Refuse variants, and choices of a grid, that train with the same arguments: their runs would be compared with
    themselves, and count twice in Holm's adjustment.
    """
    noise, seed = plan.label_noise[0], plan.seeds[0]
    seen: list[tuple[str, list[Any]]] = []
    for name, variant in plan.variants.items():
        found: list[Any] = []
        for choice in variant.grid:
            values = settings.values(plan.final_run(name, choice, noise, seed))
            if values in found:
                first = variant.grid[found.index(values)]
                raise UsageError(f"{path}: methods: {name}: {describe(first)} and {describe(choice)} mean the same")
            found.append(values)
        for other, values_of_other in seen:
            if len(found) == len(values_of_other) and all(values in values_of_other for values in found):
                raise UsageError(f"{path}: methods: {other} and {name} train with the same arguments: remove one")
        seen.append((name, found))


def _metric(given: Any, path: str) -> str:
    metric = "eval_accuracy" if given is None else str(given)
    if not metric.startswith("eval_"):
        raise UsageError(
            f"{path}: metric={metric} is not allowed: the names of an evaluation start with eval_, as in eval_{metric}"
        )
    return metric


def _boolean(given: Any) -> bool | None:
    """Return the boolean that `given` means, if any. The configuration files read yes and no as texts."""
    return {"true": True, "yes": True, "false": False, "no": False}.get(str(given).lower())


def _greater_is_better(given: Any, metric: str, path: str) -> bool:
    if given is None or given == "auto":
        return not metric.endswith(("loss", "mse", "mae"))
    value = _boolean(given)
    if value is None:
        raise UsageError(f"{path}: greater_is_better={given} is not allowed: it must be true, false or auto")
    return value


def _equal_compute(given: Any) -> str | None:
    """Return `None` for false, `"auto"` for true, and otherwise the text, which must be auto or a variant's name."""
    value = _boolean(given)
    return None if given is None or value is False else "auto" if value else str(given)


def _selection(given: Any, seeds: tuple[int, ...], path: str) -> Selection | None:
    if given is None:
        return None
    options = _mapping(given, f"{path}: select")
    percentage = options.pop("validation_split_percentage", 20)
    own = _integers(options.pop("seeds", None), f"{path}: select: seeds")
    if options:
        raise UsageError(
            f"{path}: select: unknown key {next(iter(options))}: there is validation_split_percentage, seeds"
        )
    if type(percentage) is not int or not 1 <= percentage <= 99:
        raise UsageError(f"{path}: select: validation_split_percentage={percentage} must be from 1 to 99")
    both = sorted(set(own) & set(seeds))
    if both:
        raise UsageError(f"{path}: select: seeds: {both[0]} is also among the final seeds: give the search others")
    return Selection(percentage, own)


def _integers(given: Any, where: str) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(type(seed) is int and seed >= 0 for seed in given):
        hint = f". [{given}] is one seed, and [0, 1, 2] are three" if type(given) is int else ""
        raise UsageError(f"{where}={given} is not allowed: it must be a list of whole numbers, none below 0{hint}")
    if max(given) >= 2**32:
        raise UsageError(f"{where}={given} is not allowed: NumPy's seeds are below 2**32 = 4294967296")
    if len(set(given)) < len(given):
        raise UsageError(f"{where}={given} is not allowed: a seed must not occur twice")
    return tuple(given)


def _noise(given: Any, path: str) -> tuple[float, ...]:
    rates = given if isinstance(given, list) else [given]
    if not rates or not all(type(rate) in (int, float) and 0 <= rate < 1 for rate in rates):
        wrong = next((rate for rate in rates if type(rate) in (int, float) and 1 < rate < 100), None)
        hint = "" if wrong is None else f". {wrong:g} % is {wrong / 100:g}"
        raise UsageError(f"{path}: label_noise={given} is not allowed: it must be a list of shares, 0 <= R < 1{hint}")
    if len(set(rates)) < len(rates):
        raise UsageError(f"{path}: label_noise={given} is not allowed: a share must not occur twice")
    return tuple(float(rate) for rate in rates)


def _mapping(given: Any, where: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UsageError(f"{where} must hold `name: value` lines: {given} was given")
    return dict(given)

"""Reading a comparison's YAML, with every option checked before any compute is spent."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..command_line.parsing import parse_arguments, read_yaml
from ..errors import UsageError
from ..recipes import RECIPES, recipe_argument_types
from .compute import with_twins
from .isolation import own_globals
from .plan import Plan, Run, Selection, Variant, choices_of, describe, refuse_own_options, without_own_options

_KEYS = "recipe base methods baseline seeds label_noise equal_compute select metric greater_is_better".split()


def read_plan(path: str) -> Plan:
    """
    The plan that the file at `path` describes; docs/compare.md names its keys.

    Raises:
        UsageError: anything in it that is unknown or that the recipe would refuse.
    """
    content = read_yaml(path)
    for key in content:
        if key not in _KEYS:
            close = get_close_matches(str(key), _KEYS, n=1)
            hint = f"did you mean {close[0]}?" if close else f"there is {', '.join(_KEYS)}"
            raise UsageError(f"{path}: unknown key {key}: {hint}")
    recipe = content.get("recipe")
    if recipe not in RECIPES:
        raise UsageError(f"{path}: recipe={recipe} is not allowed: it must be {' or '.join(RECIPES)}")
    seeds = _integers(content.get("seeds"), f"{path}: seeds")
    select = _selection(content.get("select"), seeds, path)
    variants = _variants(content, select, path)
    baseline = content.get("baseline")
    if baseline not in variants:
        raise UsageError(f"{path}: baseline={baseline} is not allowed: it must be one of {', '.join(variants)}")
    metric = str(content.get("metric", "eval_accuracy"))
    plan = Plan(
        recipe=recipe,
        variants=variants,
        baseline=baseline,
        seeds=seeds,
        label_noise=_noise(content.get("label_noise", [0.0]), path),
        select=select,
        metric=metric,
        greater_is_better=bool(content.get("greater_is_better", not metric.endswith(("loss", "mse", "mae")))),
    )
    return with_twins(plan, content.get("equal_compute"), _parsed(plan), path)


def _variants(content: Mapping[str, Any], select: Selection | None, path: str) -> dict[str, Variant]:
    base = _mapping(content.get("base"), f"{path}: base")
    config = base.pop("config", None)
    refuse_own_options(base, f"{path}: base")
    base = {**(without_own_options(read_yaml(config)) if config is not None else {}), **base}
    variants: dict[str, Variant] = {}
    for name, given in _mapping(content.get("methods"), f"{path}: methods").items():
        options = _mapping(given, f"{path}: methods: {name}")
        refuse_own_options(options, f"{path}: methods: {name}")
        fixed, grid = choices_of(options)
        if not grid:
            raise UsageError(f"{path}: methods: {name}: a list of values must not be empty")
        if select is not None or len(grid) == 1:
            variants[str(name)] = Variant(str(name), {**base, **fixed}, grid)
        else:
            for choice in grid:
                full = f"{name} ({describe(choice)})"
                variants[full] = Variant(full, {**base, **fixed, **choice})
    if not variants:
        raise UsageError(f"{path}: methods: there must be one at least")
    return variants


def _parsed(plan: Plan) -> Any:
    """A function that gives the recipe's three argument objects for options, or the error the recipe would give."""
    types = recipe_argument_types(plan.recipe)

    def parse(run: Run) -> tuple[Any, ...]:
        with tempfile.TemporaryDirectory() as folder:
            config = write_config(run, Path(folder))
            try:
                with own_globals():
                    return parse_arguments(types, ["--config", str(config)], "")
            except UsageError as error:
                message = str(error).replace(f"{config}: ", "")
                raise UsageError(f"methods: {run.variant}: {message}") from error

    return parse


def write_config(run: Run, folder: Path, save_model: bool = False) -> Path:
    """The recipe's configuration file for `run`, which writes into `folder`."""
    import yaml

    options = {**run.options, "output_dir": str(folder / "output"), "save_final_model": save_model}
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(options, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return file


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
    if not isinstance(percentage, int) or not 1 <= percentage <= 99:
        raise UsageError(f"{path}: select: validation_split_percentage={percentage} must be from 1 to 99")
    both = sorted(set(own) & set(seeds))
    if both:
        raise UsageError(f"{path}: select: seeds: {both[0]} is also among the final seeds: the search needs its own")
    return Selection(percentage, own)


def _integers(given: Any, where: str) -> tuple[int, ...]:
    if not isinstance(given, list) or not given or not all(type(seed) is int and seed >= 0 for seed in given):
        raise UsageError(f"{where}={given} is not allowed: it must be a list of whole numbers from 0 up")
    if len(set(given)) < len(given):
        raise UsageError(f"{where}={given} is not allowed: a seed must not be there twice")
    return tuple(given)


def _noise(given: Any, path: str) -> tuple[float, ...]:
    rates = given if isinstance(given, list) else [given]
    if not rates or not all(type(rate) in (int, float) and 0 <= rate < 1 for rate in rates):
        raise UsageError(f"{path}: label_noise={given} is not allowed: it must be a list of shares, 0 <= R < 1")
    return tuple(dict.fromkeys(float(rate) for rate in rates))


def _mapping(given: Any, where: str) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise UsageError(f"{where} must hold `name: value` lines: {given} was given")
    return dict(given)

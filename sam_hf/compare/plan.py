"""From a YAML to the runs it asks for."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import UsageError

# What the comparison sets itself in every run
_OWN = {
    "do_train": True,
    "do_eval": True,
    "do_predict": False,
    "eval_on_start": False,
    "eval_strategy": "epoch",
    "save_strategy": "no",
    "report_to": "none",
    "push_to_hub": False,
    "disable_tqdm": True,
    "load_best_model_at_end": False,
    "overwrite_output_dir": True,
}
# Where each of these belongs instead
_ELSEWHERE = {
    "seed": "seeds",
    "data_seed": "seeds",
    "label_noise": "label_noise",
    "validation_split_percentage": "select",
    "output_dir": "--output_dir",
    "save_final_model": "--keep_models",
    **dict.fromkeys(_OWN, "no place: the comparison sets it"),
}
_TEST_SET = ("validation_file", "validation_dir", "test_file", "test_dir")


@dataclass(frozen=True)
class Run:
    """
    One call of the recipe.

    Attributes:
        recipe: `"text"` or `"image"`.
        variant: name under which its result is reported.
        purpose: `"final"`, measured on the recipe's validation set, or `"select"`, on examples cut off from training.
        label_noise, seed: as in the recipe.
        options: everything the recipe is given but for where it writes.
    """

    recipe: str
    variant: str
    purpose: str
    label_noise: float
    seed: int
    options: Mapping[str, Any] = field(repr=False)

    @property
    def key(self) -> str:
        """What the result depends on, as 12 hexadecimal digits: runs with the same key are the same run."""
        content = json.dumps([self.recipe, _canonical(dict(self.options))], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """Readable, and unique by its end, the key."""
        variant = re.sub(r"[^A-Za-z0-9.]+", "-", self.variant).strip("-") or "variant"
        return f"{variant}_{self.purpose}_noise{self.label_noise:g}_seed{self.seed}_{self.key}"


@dataclass(frozen=True)
class Variant:
    """
    A named way to train.

    Attributes:
        options: of the recipe, without those of the grid.
        grid: the choices left open, each a dict of options; one empty dict where there are none.
        made: it was not written by the user, but made to train the baseline at another variant's compute.
    """

    name: str
    options: Mapping[str, Any]
    grid: tuple[Mapping[str, Any], ...] = ({},)
    made: bool = False


@dataclass(frozen=True)
class Selection:
    """How grids are decided: on this share of the training examples, with seeds of their own."""

    percentage: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """
    A comparison.

    Attributes:
        metric: what is compared, as evaluation names it.
        greater_is_better: whether more of it is better.
        twins: for a variant, one entry a choice of its grid: the variant that trains the baseline with the same
            compute, or `None` where nothing is to be compared so.
        compute: likewise, passes over an epoch's examples that training takes: epochs × passes an update.
    """

    recipe: str
    variants: Mapping[str, Variant]
    baseline: str
    seeds: tuple[int, ...]
    label_noise: tuple[float, ...]
    select: Selection | None
    metric: str
    greater_is_better: bool
    twins: Mapping[str, tuple[str | None, ...]] = field(default_factory=dict)
    compute: Mapping[str, tuple[float, ...]] = field(default_factory=dict)

    def twin(self, variant: str, choice: Mapping[str, Any]) -> str | None:
        return self.twins[variant][self.variants[variant].grid.index(choice)]

    def final_run(self, variant: str, choice: Mapping[str, Any], noise: float, seed: int) -> Run:
        options = {**self.variants[variant].options, **choice, **_OWN, "label_noise": noise, "seed": seed}
        return Run(self.recipe, variant, "final", noise, seed, options)

    def selection_run(self, variant: str, choice: Mapping[str, Any], noise: float, seed: int) -> Run:
        assert self.select is not None
        given = {**self.variants[variant].options, **choice}
        # The test set is not even named: no mistake of a recipe's can look at it
        options = {key: value for key, value in given.items() if key not in _TEST_SET}
        options |= {**_OWN, "label_noise": noise, "seed": seed, "validation_split_percentage": self.select.percentage}
        return Run(self.recipe, variant, "select", noise, seed, options)

    def selection_runs(self) -> list[Run]:
        """The whole search, in an order that finishes one seed after the other."""
        if self.select is None:
            return []
        return [
            self.selection_run(variant.name, choice, noise, seed)
            for seed in self.select.seeds
            for noise in self.label_noise
            for variant in self.variants.values()
            if len(variant.grid) > 1
            for choice in variant.grid
        ]

    def final_runs(self, choices: Mapping[tuple[str, float], Mapping[str, Any]]) -> list[Run]:
        """The runs to report whose choices are known: `choices` maps variant and noise rate to one."""
        return [
            self.final_run(variant.name, choice, noise, seed)
            for seed in self.seeds
            for noise in self.label_noise
            for variant in self.variants.values()
            if (choice := choices.get((variant.name, noise), variant.grid[0] if len(variant.grid) == 1 else None))
            is not None
        ]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(choice: Mapping[str, Any]) -> str:
    """`sam_rho=0.01, learning_rate=0.0001`."""
    return ", ".join(f"{key}={value}" for key, value in choice.items())


def choices_of(options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """What is fixed, and every combination of what is not: an option with a list of values is open."""
    fixed = {key: value for key, value in options.items() if not isinstance(value, list)}
    open_options = {key: value for key, value in options.items() if isinstance(value, list)}
    combinations = itertools.product(*open_options.values())
    return fixed, tuple(dict(zip(open_options, values, strict=True)) for values in combinations)


def refuse_own_options(options: Mapping[str, Any], where: str) -> None:
    """Options that belong to the comparison as a whole."""
    for key in options:
        if key in _ELSEWHERE:
            raise UsageError(f"{where}: {key} belongs in {_ELSEWHERE[key]}")


def without_own_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of the recipe's, made for a single run, without what a comparison sets."""
    return {key: value for key, value in options.items() if key not in _ELSEWHERE}


def _canonical(value: Any) -> Any:
    """`1`, `1.0` and `True` as YAML may hold them: numbers that are equal are the same option."""
    if isinstance(value, dict):
        return {str(key): _canonical(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_canonical(entry) for entry in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

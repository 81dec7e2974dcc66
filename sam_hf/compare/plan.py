"""The runs of a comparison."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import UsageError

# Options that the comparison sets in every run
_FIXED = {
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
# Options that are not given per variant, and where they are given instead
_GIVEN_IN = {
    "seed": "seeds",
    "data_seed": "seeds",
    "label_noise": "label_noise",
    "validation_split_percentage": "select",
    "output_dir": "--output_dir",
    "save_final_model": "--keep_models",
    **dict.fromkeys(_FIXED, "no place: the comparison sets it"),
}
_TEST_SET = ("validation_file", "validation_dir", "test_file", "test_dir")
Choices = Mapping[tuple[str, float], Mapping[str, Any]]  # by variant and noise rate


@dataclass(frozen=True)
class Run:
    """
    One call of the recipe.

    Attributes:
        recipe: `"text"` or `"image"`.
        variant: name under which the result is reported.
        purpose: `"final"`, evaluated on the recipe's validation set, or `"select"`, on examples cut off from training.
        label_noise, seed: options of the recipe.
        options: all options of the recipe, except where it writes.
    """

    recipe: str
    variant: str
    purpose: str
    label_noise: float
    seed: int
    options: Mapping[str, Any] = field(repr=False)

    @property
    def key(self) -> str:
        """A hash of all that the result depends on, 12 hexadecimal digits. Runs with the same key are the same run."""
        content = json.dumps([self.recipe, _canonical(dict(self.options))], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:12]

    @property
    def name(self) -> str:
        """A readable name. It ends with the key, which makes it unique."""
        variant = re.sub(r"[^A-Za-z0-9.]+", "-", self.variant).strip("-") or "variant"
        return f"{variant}_{self.purpose}_noise{self.label_noise:g}_seed{self.seed}_{self.key}"


@dataclass(frozen=True)
class Variant:
    """
    A named way to train.

    Attributes:
        options: options of the recipe, without those of the grid.
        grid: the choices to search among, each a dict of options; one empty dict if there is nothing to choose.
        made: the variant is not the user's; it was added to train the baseline with another variant's compute.
    """

    name: str
    options: Mapping[str, Any]
    grid: tuple[Mapping[str, Any], ...] = ({},)
    made: bool = False


@dataclass(frozen=True)
class Selection:
    """How the search evaluates: on this share of the training examples, with its own seeds."""

    percentage: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """
    A comparison.

    Attributes:
        metric: the metric to compare, as evaluation names it.
        greater_is_better: whether greater values of the metric are better.
        twins: for each variant, one entry per choice of its grid: the variant that trains the baseline with the same
            compute, or `None` if there is no such comparison.
        compute: for each variant, one entry per choice: epochs (or updates) × passes per update.
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
        options = {**self.variants[variant].options, **choice, **_FIXED, "label_noise": noise, "seed": seed}
        return Run(self.recipe, variant, "final", noise, seed, options)

    def selection_run(self, variant: str, choice: Mapping[str, Any], noise: float, seed: int) -> Run:
        assert self.select is not None
        run = self.final_run(variant, choice, noise, seed)
        # The test set is not even named, so that no mistake in a recipe can read it
        options = {key: value for key, value in run.options.items() if key not in _TEST_SET}
        options["validation_split_percentage"] = self.select.percentage
        return replace(run, purpose="select", options=options)

    def selection_runs(self) -> list[Run]:
        """Return all runs of the search, one seed after the other."""
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

    def known_choices(self, chosen: Choices) -> Choices:
        """Return what the search has chosen, and the only choice of each variant that has no more than one."""
        return {
            (variant.name, noise): choice
            for noise in self.label_noise
            for variant in self.variants.values()
            for choice in (variant.grid if len(variant.grid) == 1 else [chosen.get((variant.name, noise))])
            if choice is not None
        }

    def all_runs(self) -> list[Run]:
        """Return all runs of the search, and the runs to report for every choice that it may make."""
        return [
            *self.selection_runs(),
            *(
                self.final_run(variant.name, choice, noise, seed)
                for variant in self.variants.values()
                for choice in variant.grid
                for noise in self.label_noise
                for seed in self.seeds
            ),
        ]

    def final_runs(self, chosen: Choices) -> list[Run]:
        """Return the runs to report whose choices are known."""
        known = self.known_choices(chosen).items()
        return [self.final_run(name, choice, noise, seed) for seed in self.seeds for (name, noise), choice in known]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def describe(choice: Mapping[str, Any]) -> str:
    """Return a choice as text, such as `sam_rho=0.01, learning_rate=0.0001`."""
    return ", ".join(f"{key}={value}" for key, value in choice.items())


def percent(share: float) -> str:
    """Return a share as text. Different shares give different texts, which `:.0%` does not."""
    return f"{100 * share:.6g}%"


def split_grid(options: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """Return the options with a single value, and all combinations of those with a list of values."""
    fixed = {key: value for key, value in options.items() if not isinstance(value, list)}
    lists = {key: value for key, value in options.items() if isinstance(value, list)}
    return fixed, tuple(dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values()))


def refuse_shared_options(options: Mapping[str, Any], where: str) -> None:
    """Raise `UsageError` if `options` holds options that are given for the whole comparison."""
    for key in options:
        if key in _GIVEN_IN:
            raise UsageError(f"{where}: {key} belongs in {_GIVEN_IN[key]}")


def without_shared_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a recipe's configuration without those that are given for the whole comparison."""
    return {key: value for key, value in options.items() if key not in _GIVEN_IN}


def _canonical(value: Any) -> Any:
    """Make equal options equal as JSON: `1` and `1.0` are the same number, and `null` is the same as no option."""
    if isinstance(value, dict):
        return {str(key): _canonical(entry) for key, entry in value.items() if entry is not None}
    if isinstance(value, list):
        return [_canonical(entry) for entry in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

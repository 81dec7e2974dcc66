"""Tests of the plan that a YAML file describes, and of the errors in such a file."""

from __future__ import annotations

import pytest

from sam_hf.commands.compare import main
from sam_hf.compare.read import read_plan
from sam_hf.errors import UsageError

SEARCH = {"validation_split_percentage": 25, "seeds": [100, 101]}


def test_runs_are_variants_times_seeds_times_noise(write_plan):
    plan = read_plan(write_plan())
    runs = plan.final_runs({})
    assert len({run.key for run in runs}) == len(runs) == 2 * 2 * 2
    assert {(run.variant, run.seed, run.label_noise) for run in runs} == {
        (variant, seed, noise) for variant in ("adamw", "sam") for seed in (0, 1) for noise in (0.0, 0.4)
    }
    assert plan.selection_runs() == []


def test_without_a_search_every_choice_of_a_grid_is_a_variant(write_plan):
    methods = {"adamw": {"sam_method": "none"}, "sam": {"sam_rho": [0.01, 0.1], "sam_p": [2, 3]}}
    plan = read_plan(write_plan(methods=methods))
    assert list(plan.variants) == [
        "adamw",
        *(f"sam (sam_rho={rho}, sam_p={p})" for rho in (0.01, 0.1) for p in (2, 3)),
    ]


def test_a_search_comes_before_its_final_runs(write_plan):
    methods = {"adamw": {"sam_method": "none"}, "sam": {"sam_rho": [0.01, 0.1]}}
    plan = read_plan(write_plan(methods=methods, select=SEARCH))
    search = plan.selection_runs()
    assert [(run.seed, run.label_noise, run.options["sam_rho"]) for run in search] == [
        (seed, noise, rho) for seed in (100, 101) for noise in (0.0, 0.4) for rho in (0.01, 0.1)
    ]
    assert {run.variant for run in plan.final_runs({})} == {"adamw"}
    final = plan.final_runs({("sam", 0.4): {"sam_rho": 0.1}})
    assert [(run.seed, run.options["sam_rho"]) for run in final if run.variant == "sam"] == [(0, 0.1), (1, 0.1)]


def test_a_list_of_one_list_is_an_option_with_a_list(write_plan):
    methods = {"adamw": {"sam_method": "none"}, "sam": {"lora_r": 2, "lora_target_modules": [["query", "value"]]}}
    plan = read_plan(write_plan(methods=methods))
    assert plan.final_run("sam", plan.variants["sam"].grid[0], 0.0, 0).options["lora_target_modules"] == [
        "query",
        "value",
    ]


def test_a_configuration_of_the_recipe_gives_the_base_and_base_and_variants_override_it(write_plan, base, tmp_path):
    config = tmp_path / "single.yaml"
    config.write_text("seed: 7\noutput_dir: elsewhere\neval_strategy: steps\nweight_decay: 0.3\nlearning_rate: 0.5\n")
    plan = read_plan(write_plan(base={**base, "config": str(config)}))
    options = plan.final_run("sam", {}, 0.4, 1).options
    assert options["weight_decay"] == 0.3
    assert options["learning_rate"] == base["learning_rate"]
    assert (options["seed"], options["label_noise"], options["eval_strategy"]) == (1, 0.4, "epoch")
    assert "output_dir" not in options and "config" not in options


def test_the_key_of_a_run_is_what_its_result_depends_on(write_plan, base):
    run = read_plan(write_plan()).final_run("sam", {}, 0.0, 0)
    renamed = {"plain": {"sam_method": "none"}, "other": {"sam_rho": 0.05, "sam_method": "sam"}}
    assert read_plan(write_plan(methods=renamed, baseline="plain")).final_run("other", {}, 0.0, 0).key == run.key
    assert read_plan(write_plan(base={**base, "num_train_epochs": 2.0})).final_run("sam", {}, 0.0, 0).key == run.key
    changed = [
        read_plan(write_plan(base={**base, "learning_rate": 0.02})).final_run("sam", {}, 0.0, 0),
        read_plan(write_plan()).final_run("sam", {}, 0.4, 0),
        read_plan(write_plan()).final_run("sam", {}, 0.0, 1),
        read_plan(write_plan()).final_run("adamw", {}, 0.0, 0),
    ]
    assert len({run.key, *(other.key for other in changed)}) == 5


def test_equal_compute_counts_the_passes(write_plan):
    methods = {
        "adamw": {"sam_method": "none"},
        "sam": {"sam_method": "sam"},
        "twice": {"sam_method": "none", "num_train_epochs": 4},
        "looksam": {"sam_method": "looksam"},
        "msam": {"sam_method": "msam"},
        "quarter": {"sam_ascent_fraction": 0.25},
        "late": {"sam_start_ratio": 0.7, "sam_ascent_steps": 2},
        "asam every 4th": {"sam_method": "asam", "sam_interval": 4},
    }
    plan = read_plan(write_plan(methods=methods, equal_compute="auto"))
    assert {name: plan.twins[name][0] for name in methods} == {
        "adamw": None,
        "sam": "twice",  # a variant of the user's that has the same options as the twin would have
        "twice": None,
        "looksam": "adamw, 2.4 epochs",
        "msam": "adamw",
        "quarter": "adamw, 2.5 epochs",
        "late": "adamw, 3.2 epochs",
        "asam every 4th": "adamw, 2.5 epochs",
    }
    twin = plan.final_run("adamw, 2.4 epochs", {}, 0.0, 0)
    assert twin.options["num_train_epochs"] == 2.4 and twin.options["sam_method"] == "none"
    assert plan.compute["looksam"] == plan.compute["adamw, 2.4 epochs"] == (pytest.approx(2.4),)


def test_a_named_twin_is_compared_with_everyone_else(write_plan):
    methods = {
        "adamw": {"sam_method": "none"},
        "longer": {"sam_method": "none", "num_train_epochs": 4},
        "sam": {"sam_method": "sam"},
    }
    plan = read_plan(write_plan(methods=methods, equal_compute="longer"))
    assert plan.twins == {"adamw": (None,), "longer": (None,), "sam": ("longer",)}


@pytest.mark.parametrize("written", ["true", "yes", "auto", "false", "no"])
def test_equal_compute_may_be_true_or_false(write_plan, written):
    file = write_plan()
    with open(file, "a") as stream:
        stream.write(f"equal_compute: {written}\n")
    assert read_plan(file).twins["sam"] == (None if written in ("false", "no") else "adamw, 4 epochs",)


@pytest.mark.parametrize(
    ("written", "metric", "expected"),
    [
        *(("true", "eval_loss", True), ("yes", "eval_loss", True), ("auto", "eval_loss", False)),
        *(("false", "eval_f1", False), ("no", "eval_f1", False), ("auto", "eval_f1", True)),
    ],
)
def test_the_direction_of_the_metric(write_plan, written, metric, expected):
    file = write_plan(metric=metric)
    with open(file, "a") as stream:
        stream.write(f"greater_is_better: {written}\n")
    assert read_plan(file).greater_is_better is expected


def test_the_twin_of_updates_has_more_updates(write_plan, base):
    plan = read_plan(write_plan(base={**base, "max_steps": 5}, equal_compute="auto"))
    assert plan.twins["sam"] == ("adamw, 10 steps",)
    assert plan.final_run("adamw, 10 steps", {}, 0.0, 0).options["max_steps"] == 10


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({"sam": {"sam_rho": 0.05}, "again": {"sam_rho": "0.05"}}, "sam and again train with the same arguments"),
        ({"sam": {}, "default": {"sam_method": "sam"}}, "sam and default train with the same arguments"),
        ({"sam": {}, "same rate": {"learning_rate": "1e-2"}}, "sam and same rate train with the same arguments"),
        ({"sam": {"sam_rho": [0.1, 0.10, "0.1"]}}, "sam (sam_rho=0.1) is given twice"),
        ({"sam": {"sam_p": [2, None]}}, "sam (sam_p=2) and sam (sam_p=None) train with the same arguments"),
    ],
    ids=["spelling", "default", "base", "one grid", "spelling in a grid"],
)
def test_variants_that_train_alike_are_refused(write_plan, methods, message):
    with pytest.raises(UsageError) as error:
        read_plan(write_plan(methods={"adamw": {"sam_method": "none"}, **methods}))
    assert message in str(error.value)


def test_choices_of_a_search_that_train_alike_are_refused(write_plan):
    methods = {"adamw": {"sam_method": "none"}, "sam": {"sam_rho": [0.1, "0.1"]}}
    with pytest.raises(UsageError, match=r"methods: sam: sam_rho=0.1 and sam_rho=0.1 mean the same"):
        read_plan(write_plan(methods=methods, select=SEARCH))
    methods = {"adamw": {"sam_method": "none"}, "up": {"sam_rho": [0.1, 0.2]}, "down": {"sam_rho": [0.2, 0.1]}}
    with pytest.raises(UsageError, match="up and down train with the same arguments"):
        read_plan(write_plan(methods=methods, select=SEARCH))
    methods["down"] = {"sam_rho": [0.2, 0.3]}  # grids that overlap choose separately
    read_plan(write_plan(methods=methods, select=SEARCH))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"recipe": "audio"}, "recipe=audio is not allowed: it must be text or image"),
        ({"seed": [0]}, "unknown key seed: did you mean seeds?"),
        ({"baseline": "sgd"}, "baseline=sgd is not allowed: it must be one of adamw, sam"),
        ({"seeds": None}, "seeds=None is not allowed"),
        ({"seeds": [0, 0]}, "a seed must not occur twice"),
        ({"seeds": [0, 1, 0]}, "a seed must not occur twice"),
        *(({"seeds": seeds}, "a list of whole numbers") for seeds in ([True], [1, 1.0], ["1"], [1, "1"], "3", [[1]])),
        ({"seeds": 3}, "a list of whole numbers, none below 0. [3] is one seed, and [0, 1, 2] are three"),
        ({"seeds": [2**32]}, "NumPy's seeds are below 2**32"),
        ({"label_noise": [1.0]}, "label_noise=[1.0] is not allowed"),
        ({"label_noise": 40}, "a list of shares, 0 <= R < 1. 40 % is 0.4"),
        ({"label_noise": [0, 12.5]}, "a list of shares, 0 <= R < 1. 12.5 % is 0.125"),
        ({"label_noise": ["40%"]}, "a list of shares, 0 <= R < 1"),
        ({"label_noise": [0, 0.0]}, "label_noise=[0, 0.0] is not allowed: a share must not occur twice"),
        ({"methods": None}, "methods: there must be at least one"),
        ({"methods": ["adamw"]}, "methods must hold `name: value` lines"),
        ({"methods": {"adamw": {"sam_method": "none", "sam_roh": 1}}}, "adamw: unknown option sam_roh: did you mean"),
        ({"methods": {"adamw": {"sam_rho": [0.1, -1]}}, "baseline": "adamw (sam_rho=0.1)"}, "sam_rho=-1"),
        ({"methods": {"adamw": {"sam_rho": []}}}, "adamw: a list of values must not be empty"),
        ({"methods": {"adamw": {"seed": 3}}}, "adamw: seed belongs in seeds"),
        ({"methods": {"adamw": {"eval_strategy": "steps"}}}, "the comparison sets it"),
        ({"methods": {1: {"sam_method": "none"}, "1": {}}, "baseline": 1}, "1 is given twice"),
        ({"methods": {"sam": {"sam_rho": [0.1, 0.1]}}, "baseline": "sam (sam_rho=0.1)"}, "sam (sam_rho=0.1) is given"),
        ({"methods": {"a": {1: 2}}, "baseline": "a"}, "unknown option 1"),
        ({"recipe": ["text"]}, "recipe=['text'] is not allowed: it must be text or image"),
        ({"baseline": ["adamw"]}, "baseline=['adamw'] is not allowed: it must be one of adamw, sam"),
        (
            {"metric": "accuracy"},
            "metric=accuracy is not allowed: the names of an evaluation start with eval_, as in ",
        ),
        ({"base": {"config": 3}}, "base: config=3 is not allowed: it must be the path of a file"),
        ({"base": {"config": "nowhere.yaml"}}, "nowhere.yaml cannot be read"),
        ({"equal_compute": "sgd"}, "equal_compute=sgd is not allowed: it must be one of auto, sam"),
        ({"equal_compute": [True]}, "equal_compute=[True] is not allowed: it must be one of auto, sam"),
        ({"greater_is_better": "on"}, "greater_is_better=on is not allowed: it must be true, false or auto"),
        ({"greater_is_better": [True]}, "greater_is_better=[True] is not allowed: it must be true, false or auto"),
        ({"select": {"seeds": [1, 2]}}, "1 is also among the final seeds: give the search others"),
        ({"select": {"seeds": [5], "validation_split_percentage": 0}}, "must be from 1 to 99"),
        ({"select": {"seeds": [5], "validation_split_percentage": True}}, "must be from 1 to 99"),
        ({"select": {"seeds": [5], "percentage": 20}}, "select: unknown key percentage"),
    ],
    ids=str,
)
def test_a_wrong_plan_is_refused_before_anything_runs(write_plan, changes, message):
    with pytest.raises(UsageError) as error:
        read_plan(write_plan(**changes))
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--output_dir is missing"),
        (["--jobs", "0"], "--jobs 0 is not allowed"),
        (["--only", "sgd"], "--only sgd: there is adamw, sam"),
        (["--job", "2"], "unrecognized arguments"),
    ],
    ids=["no output", "no jobs", "unknown variant", "unknown option"],
)
def test_wrong_options_are_refused(write_plan, options, message):
    with pytest.raises(UsageError) as error:
        main([write_plan(), *options])
    assert message in str(error.value)

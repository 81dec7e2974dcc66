"""Tests of the examples that are cut off from training: which they are, and that a search sees no others."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from datasets import load_dataset
from sentence_files import write_sentences

from sam_hf.compare.read import read_plan
from sam_hf.compare.records import Records
from sam_hf.compare.search import choices, search_results
from sam_hf.compare.worker import WorkerSettings, execute_run
from sam_hf.errors import UsageError
from sam_hf.inputs.options import DataArguments
from sam_hf.inputs.splits import load_labelled


@pytest.fixture
def numbered(tmp_path) -> str:
    """Texts that name their row. Every third has label 1."""
    file = tmp_path / "numbered.csv"
    file.write_text("text,label\n" + "".join(f"row {i},{int(i % 3 == 0)}\n" for i in range(50)))
    return str(file)


def load(file: str, seed: int = 0, do_eval: bool = True, **options):
    task = SimpleNamespace(do_train=True, do_eval=do_eval, do_predict=False, eval_on_start=False, seed=seed)
    task.data_seed, task.sharpness_every_eval = None, False
    return load_labelled(DataArguments(train_file=file, **options), task, "")


def rows(split) -> dict[str, int]:
    return dict(zip(split["text"], split["labels"], strict=True))


@pytest.mark.parametrize("limits", [{}, {"max_train_samples": 40}], ids=["all", "a sample"])
def test_the_parts_are_disjoint_and_the_same_for_every_seed(numbered, limits):
    size = limits.get("max_train_samples", 50)
    splits, _, _ = load(numbered, validation_split_percentage=20, **limits)
    train, validation = rows(splits["train"]), rows(splits["validation"])
    assert len(train) == size * 0.8 and len(validation) == size * 0.2
    assert not train.keys() & validation.keys()
    whole, _, _ = load(numbered, validation_split_percentage=20, seed=5, **limits)
    assert whole["train"]["text"][:] == splits["train"]["text"][:]
    assert whole["validation"]["text"][:] == splits["validation"]["text"][:]
    # Both parts together are the examples that training would have without the cut
    uncut, _, _ = load(numbered, do_eval=False, **limits)
    assert train | validation == rows(uncut["train"])


def test_noise_is_on_both_parts_and_each_has_its_share(numbered):
    clean, _, _ = load(numbered, validation_split_percentage=20)
    noisy, _, replaced = load(numbered, validation_split_percentage=20, label_noise=0.4)
    wrong = {
        split: sum(rows(clean[split])[text] != label for text, label in rows(noisy[split]).items())
        for split in ("train", "validation")
    }
    assert wrong == {"train": 16, "validation": 4} and replaced == 16


def test_a_validation_limit_limits_what_was_cut_off(numbered):
    splits, _, _ = load(numbered, validation_split_percentage=20, max_eval_samples=3)
    assert len(splits["validation"]) == 3 and len(splits["train"]) == 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"validation_file": "x.csv"}, "validation_split_percentage and validation examples were given"),
        ({"max_train_samples": 1}, "of 1 training examples leaves none for training or none for validation"),
    ],
    ids=["both", "too few"],
)
def test_what_cannot_be_cut_is_refused(numbered, options, message):
    with pytest.raises(UsageError) as error:
        load(numbered, validation_split_percentage=20, **options)
    assert message in str(error.value)


@pytest.mark.parametrize("share", [0, 100])
def test_a_share_is_between_1_and_99(share):
    with pytest.raises(UsageError, match="must be from 1 to 99"):
        DataArguments(train_file="x.csv", validation_split_percentage=share)


@pytest.mark.parametrize("kind", ["files", "saved data set"])
def test_a_search_is_blind_to_the_test_set(write_plan, base, tmp_path, kind):
    """A test set with only wrong labels reverses the final result, but changes neither a choice nor a score."""
    found = {}
    for poisoned in (False, True):
        folder = tmp_path / f"poisoned_{poisoned}"
        folder.mkdir()
        test = write_sentences(folder / "test.csv", 40, seed=1, flipped=poisoned)
        options = {**base, "validation_file": str(test)}
        if kind == "saved data set":
            files = {"train": options.pop("train_file"), "validation": options.pop("validation_file")}
            load_dataset("csv", data_files=files).save_to_disk(folder / "data")
            options["dataset_name"] = str(folder / "data")
        methods = {"adamw": {"sam_method": "none", "learning_rate": [1e-5, 0.02]}}
        select = {"validation_split_percentage": 25, "seeds": [100]}
        plan = read_plan(write_plan(base=options, methods=methods, seeds=[0], label_noise=[0], select=select))
        records, settings = Records(folder / "runs"), WorkerSettings(folder, 0, None, None, False)
        for run in plan.selection_runs():
            records.add(run, execute_run(run, settings))
        candidates = search_results(plan, records)
        chosen = choices(candidates)
        [final] = plan.final_runs(chosen)
        accuracy = execute_run(final, settings)["evaluations"][-1]["eval_accuracy"]
        found[poisoned] = ([c.scores for c in candidates], chosen, accuracy)
    assert found[False][:2] == found[True][:2]
    assert found[True][1] == {("adamw", 0.0): {"learning_rate": 0.02}}
    assert found[False][2] == pytest.approx(1 - found[True][2]) and found[False][2] > 0.7


def test_a_search_run_does_not_name_the_test_set(write_plan, base):
    methods = {"adamw": {"sam_method": "none", "learning_rate": [0.1, 0.2]}}
    plan = read_plan(write_plan(methods=methods, select={"seeds": [100]}))
    for run in plan.selection_runs():
        assert base["validation_file"] not in json.dumps(dict(run.options))
        assert run.options["validation_split_percentage"] == 20

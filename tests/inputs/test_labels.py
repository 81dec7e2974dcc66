"""Tests of the label scheme that a data set implies, and of symmetric noise on the labels."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from sam_hf.errors import UsageError
from sam_hf.inputs.labels import (
    LabelScheme,
    add_label_noise,
    encode_labels,
    find_label_column,
    has_labels,
    infer_scheme,
)

SCHEME = LabelScheme("single_label_classification", ["a", "b", "c", "d"])


def dataset_of(column: str, values: list, **features) -> Dataset:
    rows = {"text": [str(i) for i in range(len(values))], column: values}
    return Dataset.from_dict(rows, features=Features({"text": Value("string"), **features}) if features else None)


def labelled(count: int) -> Dataset:
    return dataset_of("labels", [i % 4 for i in range(count)])


@pytest.mark.parametrize("rate, count", [(0.2, 200), (0.8, 800), (0.0004, 0), (0.9999, 1000)])
def test_noise_replaces_exactly_the_share_asked_for(rate, count):
    before = labelled(1000)
    after, replaced = add_label_noise(before, rate, SCHEME, seed=3)
    assert replaced == count == np.sum(np.array(before["labels"]) != np.array(after["labels"]))
    assert before["labels"][:] == labelled(1000)["labels"][:]


def test_noise_is_uniform_over_the_other_classes():
    before, (after, _) = labelled(40_000), add_label_noise(labelled(40_000), 0.75, SCHEME, seed=0)
    shift = (np.array(after["labels"]) - np.array(before["labels"])) % 4
    counts = np.bincount(shift, minlength=4)
    assert counts[0] == 10_000
    # 10 000 are expected for each of the three; six standard deviations are 490
    assert np.abs(counts[1:] - 10_000).max() < 490


def test_noise_follows_the_seed():
    first, again, other = (add_label_noise(labelled(100), 0.5, SCHEME, seed)[0]["labels"][:] for seed in (1, 1, 2))
    assert first == again != other


def test_no_noise_leaves_the_data_alone():
    dataset = labelled(8)
    assert add_label_noise(dataset, 0.0, SCHEME, seed=0) == (dataset, 0)


@pytest.mark.parametrize(
    "scheme", [LabelScheme("regression", ["labels"]), LabelScheme("single_label_classification", ["a"])]
)
def test_noise_needs_classes(scheme):
    with pytest.raises(UsageError, match=r"label_noise=0\.2"):
        add_label_noise(labelled(8), 0.2, scheme, seed=0)


@pytest.mark.parametrize(
    "values, problem_type, names",
    [
        ([3, 1, 10], "single_label_classification", ["1", "3", "10"]),
        (["no", "yes", "no"], "single_label_classification", ["no", "yes"]),
        ([True, False, True], "single_label_classification", ["False", "True"]),
        ([0.5, 1.0, 2.0], "regression", ["label"]),
        ([["x"], ["y", "x"], []], "multi_label_classification", ["x", "y"]),
    ],
)
def test_scheme_follows_the_type_of_the_labels(values, problem_type, names):
    scheme = infer_scheme(dataset_of("label", values), "label")
    assert scheme == LabelScheme(problem_type, names)


def test_class_label_keeps_its_names_and_their_order():
    dataset = dataset_of("label", [1, 0], label=ClassLabel(names=["zebra", "ape"]))
    scheme = infer_scheme(dataset, "label")
    assert scheme.names == ["zebra", "ape"]
    assert encode_labels(dataset, "label", scheme, "train")["labels"][:] == [1, 0]


def test_integers_can_be_made_a_regression():
    dataset = dataset_of("label", [1, 5])
    scheme = infer_scheme(dataset, "label", "regression")
    encoded = encode_labels(dataset, "label", scheme, "train")
    assert scheme.problem_type == "regression"
    assert encoded.features["labels"] == Value("float32")


@pytest.mark.parametrize(
    "values, problem_type", [(["no", "yes"], "regression"), ([0, 1], "multi_label_classification"), ([0, None], None)]
)
def test_labels_that_do_not_fit(values, problem_type):
    with pytest.raises(UsageError, match="label"):
        infer_scheme(dataset_of("label", values), "label", problem_type)


def test_multi_label_rows_are_zeros_and_ones():
    dataset = dataset_of("label", [["y"], ["x", "y"], []])
    encoded = encode_labels(dataset, "label", LabelScheme("multi_label_classification", ["x", "y"]), "train")
    assert encoded["labels"][:] == [[0, 1], [1, 1], [0, 0]]
    assert encoded.features["labels"] == List(Value("float32"))


def test_a_label_that_no_training_example_has():
    with pytest.raises(
        UsageError, match="the validation split has the label 9 in row 0, which no training example has"
    ):
        scheme = LabelScheme("single_label_classification", ["0"])
        encode_labels(dataset_of("label", [9]), "label", scheme, "validation")


def test_label_column():
    dataset = Dataset.from_dict({"text": ["a"], "labels": [-1]})
    assert find_label_column(dataset, None) == "labels"
    with pytest.raises(UsageError, match="no column stars: the columns are text, labels"):
        find_label_column(dataset, "stars")


def test_examples_to_predict_may_have_no_labels():
    regression = LabelScheme("regression", ["labels"])
    hidden = dataset_of("labels", [-1, -1])
    assert not has_labels(hidden, "labels", SCHEME)
    assert has_labels(hidden, "labels", regression)  # -1 is a number like any other
    assert not has_labels(dataset_of("labels", [0.5, None]), "labels", regression)
    assert not has_labels(hidden, "label", SCHEME)
    assert has_labels(labelled(4), "labels", SCHEME)

"""What a column of labels means: missing labels, vectors of zeros and ones, numbers, and what is refused."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value, load_dataset

from sam_hf.errors import UsageError
from sam_hf.inputs.files import read_file
from sam_hf.inputs.labels import LabelScheme, encode_labels, infer_scheme, labelled

THREE = ClassLabel(names=["no", "maybe", "yes"])
CLASSES = "single_label_classification"


def column(values: list, feature=None) -> Dataset:
    rows = {"text": ["x"] * len(values), "label": values}
    return Dataset.from_dict(rows, features=Features({"text": Value("string"), "label": feature}) if feature else None)


def csv_column(tmp_path, values: list[str]) -> Dataset:
    (tmp_path / "labels.csv").write_text("text,label\n" + "".join(f"x,{value}\n" for value in values))
    return read_file(str(tmp_path / "labels.csv"))


def targets(dataset: Dataset, **options) -> tuple[LabelScheme, list]:
    scheme = infer_scheme(dataset, "label", **options)
    return scheme, encode_labels(dataset, "label", scheme, "train")["labels"][:]


@pytest.mark.parametrize("missing", [-1, None])
def test_a_class_without_a_label_is_counted_and_can_be_left_out(missing):
    dataset = column([0, missing, 2, missing], THREE)
    with pytest.raises(UsageError, match=r"2 of 4 examples have no label .*first row 1: give drop_unlabelled"):
        labelled(dataset, "label", "train")
    assert labelled(dataset, "label", "train", drop=True)["label"][:] == [0, 2]


def test_no_label_at_all():
    with pytest.raises(UsageError, match="none of the 2 examples has a label"):
        labelled(column([-1, -1], THREE), "label", "train", drop=True)


@pytest.mark.parametrize("wrong", [-2, 3])
def test_a_number_that_is_no_class(tmp_path, wrong):
    """datasets checks the numbers of classes when it encodes them, and not when it reads a file."""
    schema = column([0], THREE).data.table.schema
    table = pa.table({"text": ["x"] * 3, "label": pa.array([0, 1, wrong], pa.int64())}, schema=schema)
    pq.write_table(table, tmp_path / "data.parquet")
    dataset = read_file(str(tmp_path / "data.parquet"))
    assert dataset.features["label"] == THREE
    with pytest.raises(UsageError, match=rf"row 2 .*holds {wrong}: classes are numbered from 0 to 2"):
        infer_scheme(dataset, "label")


@pytest.mark.parametrize("source", ["integers", "csv"])
def test_minus_one_beside_zero_may_mean_two_things(source, tmp_path):
    values = [-1, 0, 1, 1]
    dataset = column(values) if source == "integers" else csv_column(tmp_path, list(map(str, values)))
    with pytest.raises(UsageError, match=rf"1 of 4 .*problem_type={CLASSES} if -1 is a class"):
        labelled(dataset, "label", "train")
    assert len(labelled(dataset, "label", "train", drop=True)) == 3
    assert len(labelled(dataset, "label", "train", problem_type=CLASSES)) == 4
    assert targets(dataset, problem_type=CLASSES) == (LabelScheme(CLASSES, ["-1", "0", "1"]), [0, 1, 2, 2])


@pytest.mark.parametrize("values", [[-1, 1], [-2, -1, 0, 1, 2]])
def test_minus_one_among_other_signs_is_a_class(values):
    dataset = labelled(column(values), "label", "train")
    assert targets(dataset)[0].names == list(map(str, values))


def test_minus_one_among_numbers_is_a_number():
    dataset = column([-1.0, 0.5, -1.0])
    assert len(labelled(dataset, "label", "train")) == 3
    assert targets(dataset) == (LabelScheme("regression", ["label"]), [-1.0, 0.5, -1.0])


def test_minus_one_in_a_later_split():
    two, three = LabelScheme(CLASSES, ["0", "1"]), LabelScheme(CLASSES, ["-1", "0", "1"])
    dataset = column([-1, 0, 1])
    with pytest.raises(UsageError, match="the validation split: 1 of 3 examples have no label"):
        labelled(dataset, "label", "validation", two)
    assert encode_labels(labelled(dataset, "label", "validation", three), "label", three, "validation")["labels"][
        :
    ] == [0, 1, 2]


VECTORS = [[0, 1, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]]


@pytest.mark.parametrize("kind", [int, float, bool])
def test_vectors_of_zeros_and_ones(kind):
    scheme, encoded = targets(column([[kind(value) for value in vector] for vector in VECTORS]))
    assert scheme == LabelScheme("multi_label_classification", ["0", "1", "2"])
    assert encoded == VECTORS


def test_vectors_have_the_names_of_the_classes():
    scheme, encoded = targets(column(VECTORS, List(THREE)))
    assert (scheme.names, encoded) == (THREE.names, VECTORS)


@pytest.mark.parametrize(
    "values, feature, names, encoded",
    [
        ([[0], [2, 0], []], List(THREE), ["no", "maybe", "yes"], [[1, 0, 0], [1, 0, 1], [0, 0, 0]]),
        ([[5], [5, 7], []], None, ["5", "7"], [[1, 0], [1, 1], [0, 0]]),
        ([[0], [1], [0]], None, ["0", "1"], [[1, 0], [0, 1], [1, 0]]),  # one class each
    ],
)
def test_lists_of_numbered_classes_are_no_vectors(values, feature, names, encoded):
    scheme, found = targets(column(values, feature))
    assert (scheme.names, found) == (names, encoded)


def test_a_short_validation_split_is_read_like_training():
    lists = infer_scheme(column([[0], [1, 0], [1]]), "label")
    vectors = infer_scheme(column(VECTORS), "label")
    assert encode_labels(column([[0, 1]]), "label", lists, "validation")["labels"][:] == [[1, 1]]
    with pytest.raises(UsageError, match=r"row 0 .*has 2 entries: each must have 3"):
        encode_labels(column([[0, 1]]), "label", vectors, "validation")


@pytest.mark.parametrize(
    "values, message",
    [
        ([[0.0, 1.0], [1.0]], "row 1 .*has 1 entries: each must have 2"),
        ([[0.0, 1.0], [0.3, 0.7]], r"row 1 .*holds 0\.3: .*only 0 and 1"),
        ([[0.0, None], [0.0, 1.0]], "row 0 .*holds None"),
        ([["a"], ["a", None]], "row 1 .*holds None, which is no class"),
        ([[0, 5], [None, 5]], "row 1 .*holds None, which is no class"),
    ],
)
def test_lists_that_are_neither(values, message):
    with pytest.raises(UsageError, match=message):
        infer_scheme(column(values), "label")


def test_a_null_instead_of_a_list_is_no_label():
    with pytest.raises(UsageError, match="1 of 2 examples have no label"):
        labelled(column([["a"], None]), "label", "train")


@pytest.mark.parametrize("wrong, shown", [(float("nan"), "nan"), (float("inf"), "inf"), (None, "None")])
def test_a_number_that_is_not_finite(wrong, shown):
    with pytest.raises(UsageError, match=rf"row 1 \(the first is 0\) is {shown}: it must be a finite number"):
        infer_scheme(column([0.5, wrong, 1.0]), "label")
    with pytest.raises(UsageError, match=rf"row 1 .*{shown}"):
        encode_labels(column([0.5, wrong]), "label", LabelScheme("regression", ["label"]), "validation")


def test_nan_is_no_class():
    with pytest.raises(UsageError, match=r"row 1 .*holds nan, which is no class"):
        infer_scheme(column([1.0, float("nan")]), "label", CLASSES)


@pytest.mark.parametrize(
    "words, problem_type, names",
    [
        (["0.5", "1", "2e-3"], "regression", ["label"]),
        (["1", "10", "9"], CLASSES, ["1", "9", "10"]),
        (["01", "02"], CLASSES, ["01", "02"]),
        (["1", "2", "N/A"], CLASSES, ["1", "2", "N/A"]),
        (["True", "False"], CLASSES, ["False", "True"]),
    ],
)
def test_labels_of_a_csv(tmp_path, words, problem_type, names):
    assert infer_scheme(csv_column(tmp_path, words), "label") == LabelScheme(problem_type, names)


def test_numbers_of_a_csv(tmp_path):
    assert targets(csv_column(tmp_path, ["1.5", " 2", "-.25"]))[1] == [1.5, 2.0, -0.25]
    assert targets(csv_column(tmp_path, ["1", "2", "3"]), problem_type="regression")[1] == [1, 2, 3]


@pytest.mark.parametrize("word", ["NaN", "inf", "-Infinity"])
def test_a_csv_number_that_is_not_finite(tmp_path, word):
    with pytest.raises(UsageError, match=rf"row 1 .*is {word}: it must be a finite number"):
        infer_scheme(csv_column(tmp_path, ["0.5", word]), "label")


def test_types_that_datasets_gave_to_a_csv(tmp_path):
    (tmp_path / "t.csv").write_text("text,label,score\nx,1,0.5\ny,0,1\n")
    dataset = load_dataset("csv", data_files=str(tmp_path / "t.csv"), split="train")
    assert infer_scheme(dataset, "label") == LabelScheme(CLASSES, ["0", "1"])
    assert infer_scheme(dataset, "score").problem_type == "regression"


def test_fractions_and_a_word_may_mean_two_things(tmp_path):
    dataset = csv_column(tmp_path, ["0.5", "1.0", "N/A"])
    with pytest.raises(UsageError, match=r"row 2 .*is 'N/A', and other rows are numbers such as 0\.5"):
        infer_scheme(dataset, "label")
    assert infer_scheme(dataset, "label", CLASSES).names == ["0.5", "1.0", "N/A"]


def test_a_word_for_a_number_in_validation(tmp_path):
    scheme = LabelScheme("regression", ["label"])
    with pytest.raises(UsageError, match=r"the validation split: row 1 .*is 'high': it must be a number"):
        encode_labels(csv_column(tmp_path, ["0.5", "high"]), "label", scheme, "validation")
    with pytest.raises(UsageError, match="the validation split holds texts: it must hold numbers"):
        encode_labels(column(["high"]), "label", scheme, "validation")


@pytest.mark.parametrize(
    "values, kind, message",
    [
        (["ab"], "multi_label_classification", "holds texts: it must hold lists of classes"),
        ([["a"]], CLASSES, "holds lists of texts: it must hold one class for each example"),
        ([{"a": 1}], CLASSES, "labels must be classes, lists of classes, or numbers"),
        ([None], CLASSES, "holds nothing"),
    ],
)
def test_another_type_in_validation(values, kind, message):
    with pytest.raises(UsageError, match=f"the validation split {message}|the validation split.*{message}"):
        encode_labels(column(values), "label", LabelScheme(kind, ["a", "b"]), "validation")


def test_a_column_labels_beside_the_one_that_is_named():
    dataset = column([0, 1]).add_column("labels", [["joy"], ["fear"]])
    scheme = infer_scheme(dataset, "label")
    assert encode_labels(dataset, "label", scheme, "train")[:] == {"text": ["x", "x"], "labels": [0, 1]}


def test_whole_numbers_with_an_empty_row_may_be_classes(tmp_path):
    dataset = csv_column(tmp_path, ["1.0", "2.0", "", "1.0"])
    with pytest.raises(UsageError, match=r"give problem_type=regression or problem_type=single_label_classification"):
        labelled(dataset, "label", "train", drop=True)
    assert len(labelled(dataset, "label", "train", problem_type=CLASSES, drop=True)) == 3


def test_classes_that_differ_only_in_white_space(tmp_path):
    with pytest.raises(UsageError, match="the classes ' 1' and '1', which differ only in white space"):
        infer_scheme(csv_column(tmp_path, ["1", " 1", "0"]), "label")
    assert infer_scheme(csv_column(tmp_path, ["a", "A", "b"]), "label").names == ["A", "a", "b"]


def test_a_vector_where_training_has_lists_of_names():
    lists = infer_scheme(column([[0], [2, 1], [1]]), "label")
    with pytest.raises(UsageError, match=r"row 0 .*names 1 twice"):
        encode_labels(column([[1, 0, 1]]), "label", lists, "validation")

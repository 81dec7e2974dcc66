"""Every split is checked like the first, before a model is loaded."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from sam_hf.errors import UsageError
from sam_hf.inputs.labels import say_columns
from sam_hf.inputs.options import DataArguments
from sam_hf.inputs.splits import load_labelled
from sam_hf.inputs.texts import check_texts, text_columns

TRAIN = [{"text": f"film {i}", "label": i % 2} for i in range(8)]


@pytest.fixture
def load(tmp_path):
    """Load files of these rows, by split, as `sam-hf text` does. Training is asked for only if there are its rows."""

    def call(text: str | None = None, pair: str | None = None, **options):
        rows = {split: options.pop(split) for split in ("train", "validation", "test") if split in options}
        files = {}
        for split, examples in rows.items():
            path = tmp_path / f"{split}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in examples), encoding="utf-8")
            files[f"{split}_file"] = str(path)
        args = SimpleNamespace(
            **{"do_train": "train" in rows, "do_eval": "validation" in rows, "do_predict": "test" in rows},
            **{"eval_on_start": False, "sharpness_every_eval": None, "seed": 42, "data_seed": None},
        )
        splits, scheme, _ = load_labelled(DataArguments(**files, **options), args, "")
        columns = text_columns(next(iter(splits.values())), text, pair)
        check_texts(splits, columns)
        return splits, scheme, columns

    return call


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": None, "label": 0}, "the column text of the {} split has 1 of 2 examples without a text"),
        ({"text": "x", "label": 7}, "the {} split has the label 7 in row 0"),
        ({"review": "x", "label": 0}, "the column text of the {} split has 1 of 2 examples without a text"),
        ({"text": "x", "label": [0]}, "the file .*{}.jsonl cannot be read: line 2: label is a number, and a list"),
    ],
)
def test_a_bad_example_in_a_later_split(load, split, row, message):
    with pytest.raises(UsageError, match=message.format(split)):
        load(train=TRAIN, **{split: [row, {"text": "y", "label": 1}]})


@pytest.mark.parametrize(
    "row, message",
    [
        ({"text": "x"}, "no column label in the validation split: the columns are text"),
        ({"review": "x", "label": 0}, "no column text in the validation split: the columns are review"),
        ({"text": 5, "label": 0}, "the column text of the validation split holds int64: it must hold texts"),
        ({"text": ["x"], "label": 0}, "the column text of the validation split holds lists of texts"),
        ({"text": {"a": "x"}, "label": 0}, "the column text of the validation split holds"),
        ({"text": None, "label": 0}, "the column text of the validation split holds nothing"),
        ({"text": "x", "label": None}, "the column label of the validation split holds nothing"),
        ({"text": "x", "label": "high"}, "the validation split has the label high"),
        ({"text": "x", "label": [1]}, "the column label of the validation split holds lists of int64"),
    ],
)
def test_another_column_in_validation(load, row, message):
    with pytest.raises(UsageError, match=message):
        load(train=TRAIN, validation=[row])


def test_a_word_for_a_number_in_validation(load):
    train = [{"text": "x", "label": i / 2} for i in range(4)]
    with pytest.raises(UsageError, match="the column label of the validation split holds texts: it must hold numbers"):
        load(train=train, validation=[{"text": "x", "label": "high"}])


def test_labels_of_examples_to_predict(load):
    _, _, _ = load(train=TRAIN, test=[{"text": "x"}])
    splits, _, _ = load(train=TRAIN, test=[{"text": "x", "label": None}, {"text": "y", "label": None}])
    assert splits["test"].column_names == ["text"]
    splits, _, _ = load(train=TRAIN, test=[{"text": "x", "label": -1}, {"text": "y", "label": 1}])
    assert splits["test"].column_names == ["text"]  # without metrics, which would be of some examples only
    splits, _, _ = load(train=TRAIN, test=[{"text": "x", "label": 1}, {"text": "y", "label": 0}])
    assert splits["test"]["labels"][:] == [1, 0]


def test_minus_one_to_predict_is_a_label_if_training_has_it(load):
    train = [{"text": "x", "label": i % 3 - 1} for i in range(6)]
    options = {"problem_type": "single_label_classification"}
    splits, _, _ = load(train=train, test=[{"text": "x", "label": -1}, {"text": "y", "label": 1}], **options)
    assert splits["test"]["labels"][:] == [0, 2]


def test_labels_of_another_task_in_the_file_to_predict(load):
    train = [{"text": "x", "sentiment": i % 2} for i in range(4)]
    splits, _, _ = load(train=train, test=[{"text": "x", "labels": ["joy"]}], label_column="sentiment")
    assert splits["test"].column_names == ["text"]


def test_training_examples_without_a_label_are_left_out_before_the_sample(load):
    train = [*TRAIN, *({"text": "unlabelled", "label": None} for _ in range(8))]
    splits, _, _ = load(train=train, max_train_samples=8, drop_unlabelled=True)
    assert sorted(splits["train"]["text"]) == sorted(row["text"] for row in TRAIN)


def test_a_part_of_the_examples_to_predict_is_the_first_part(load):
    splits, _, _ = load(train=TRAIN, test=[{"text": str(i)} for i in range(9)], max_predict_samples=3)
    assert splits["test"]["text"][:] == ["0", "1", "2"]


def test_saved_classes_with_a_mark_for_none(tmp_path):
    feature = Features({"text": Value("string"), "label": ClassLabel(names=["no", "yes"])})
    data = {"text": ["a", "b", "c"], "label": [0, 1, -1]}
    DatasetDict(train=Dataset.from_dict(data, features=feature)).save_to_disk(tmp_path / "data")
    args = SimpleNamespace(
        **{"do_train": True, "do_eval": False, "do_predict": False, "eval_on_start": False},
        **{"sharpness_every_eval": None, "seed": 42, "data_seed": None},
    )
    with pytest.raises(UsageError, match=r"1 of 3 examples have no label \(-1\), first row 2"):
        load_labelled(DataArguments(dataset_name=str(tmp_path / "data")), args, "")
    arguments = DataArguments(dataset_name=str(tmp_path / "data"), drop_unlabelled=True)
    assert load_labelled(arguments, args, "")[0]["train"]["labels"][:] == [0, 1]


def test_one_class_only(load):
    with pytest.raises(
        UsageError, match=r"all training examples have the class 1 in the column label: .*label_column"
    ):
        load(train=[{"text": "x", "label": 1}] * 4)


@pytest.mark.parametrize(
    "row, columns",
    [
        ({"author": "a", "text": "x"}, ["text"]),
        ({"title": "a", "Review": "x"}, ["Review"]),
        ({"premise": "a", "hypothesis": "x", "note": "n"}, ["premise", "hypothesis"]),
        ({"idx": "1", "question": "a", "sentence": "x"}, ["question", "sentence"]),
        ({"id": "7", "story": "x"}, ["story"]),
    ],
)
def test_columns_that_are_read_without_being_named(load, row, columns):
    assert load(train=[{**row, "label": i % 2} for i in range(4)])[2] == columns


def test_two_texts_are_a_pair_only_if_they_are_named(load):
    train = [{"author": "a", "story": "x", "label": i % 2} for i in range(4)]
    with pytest.raises(UsageError, match=r"name text_column .*the columns are author, story"):
        load(train=train)
    assert load(train=train, text="author", pair="story")[2] == ["author", "story"]
    with pytest.raises(UsageError, match="text_pair_column=story was given without text_column"):
        load(train=train, pair="story")


@pytest.mark.parametrize("value, holds", [(5, "int64"), (["x"], "lists of texts"), (None, "nothing")])
def test_a_named_column_that_holds_no_text(load, value, holds):
    with pytest.raises(UsageError, match=f"the column story of the train split holds {holds}: it must hold texts"):
        load(text="story", train=[{"story": value, "label": i % 2} for i in range(4)])


def test_numbers_of_a_csv_are_no_text_unless_they_are_named(tmp_path):
    (tmp_path / "t.csv").write_text(",story,label\n0,x,a\n1,y,b\n")
    args = SimpleNamespace(
        **{"do_train": True, "do_eval": False, "do_predict": False, "eval_on_start": False},
        **{"sharpness_every_eval": None, "seed": 42, "data_seed": None},
    )
    splits, _, _ = load_labelled(DataArguments(train_file=str(tmp_path / "t.csv")), args, "")
    assert text_columns(splits["train"]) == ["story"]
    assert text_columns(splits["train"], "Unnamed: 0") == ["Unnamed: 0"]


def test_one_line_says_what_is_read(load, capsys):
    args = SimpleNamespace(process_index=0)
    _, scheme, columns = load(train=[{"review": "x", "label": "np"[i % 2]} for i in range(4)])
    say_columns(args, "text", columns, scheme)
    _, scheme, columns = load(
        train=[{"premise": "x", "hypothesis": "y", "score": i / 2} for i in range(4)], label_column="score"
    )
    say_columns(args, "text", columns, scheme)
    say_columns(SimpleNamespace(process_index=1), "text", columns, scheme)
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "text: review; label: label, 2 classes: n, p",
        "text: premise and hypothesis; label: score, a number",
    ]

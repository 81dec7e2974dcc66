"""Words without a tag: nothing, −1 and −100 are no tags, and are never taken for the last one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from sam_hf.errors import UsageError
from sam_hf.inputs.options import ExampleArguments
from sam_hf.inputs.tags import IGNORED, load_tagged

NAMES = ["O", "B-PER", "I-PER"]


@pytest.fixture
def load(tmp_path):
    def call(splits: dict, kind=None, do_predict=False, **options):
        features = Features({"tokens": List(Value("string")), "tags": List(kind)}) if kind else None
        made = {
            split: Dataset.from_dict({"tokens": [list("abc"[: len(row)]) for row in rows], "tags": rows}, features)
            for split, rows in splits.items()
        }
        DatasetDict(made).save_to_disk(tmp_path / "data")
        args = SimpleNamespace(
            **{"do_train": True, "do_eval": "validation" in splits, "do_predict": do_predict},
            **{"eval_on_start": False, "sharpness_every_eval": None, "process_index": 0},
        )
        return load_tagged(ExampleArguments(dataset_name=str(tmp_path / "data")), args, "", **options)

    return call


@pytest.mark.parametrize(
    "kind, missing",
    [
        *((ClassLabel(names=NAMES), missing) for missing in (-1, None)),  # datasets stores no −100 in a ClassLabel
        *((Value("int64"), missing) for missing in (-1, -100, None)),
    ],
)
@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_word_without_a_tag(load, kind, missing, split):
    rows = {"train": [[0, 1, 2], [0, 0]], "validation": [[0, 1], [2]]}
    rows[split] = [*rows[split], [missing, 1]]
    with pytest.raises(UsageError, match=rf"the {split} split has 1 words without a tag .*in 1 examples"):
        load(rows, kind)
    splits, names = load(rows, kind, drop_unlabelled=True)
    assert names == (NAMES if isinstance(kind, ClassLabel) else ["0", "1", "2"])
    assert splits[split]["tags"][-1] == [IGNORED, 1]
    assert splits["train"]["tags"][0] == [0, 1, 2]


def test_names_of_tags_without_one_of_them(load):
    with pytest.raises(UsageError, match="1 words without a tag"):
        load({"train": [["O", "B-PER"], ["O", None]]})
    assert load({"train": [["O", "B-PER"], ["O", None]]}, drop_unlabelled=True)[1] == ["B-PER", "O"]


def test_a_tag_that_training_does_not_have(load):
    with pytest.raises(UsageError, match="the validation split has the tag B-LOC, which no training example has"):
        load({"train": [["O"], ["B-PER"]], "validation": [["B-LOC"]]})


@pytest.mark.parametrize("rows", [[None, ["O"]], [["O"], None]])
def test_an_example_without_tags(load, rows):
    with pytest.raises(UsageError, match="has 1 examples without tags"):
        features = Features({"tokens": List(Value("string")), "tags": List(Value("string"))})
        load_rows = Dataset.from_dict({"tokens": [["a"], ["a"]], "tags": rows}, features)
        from sam_hf.inputs.tags import _named_tags

        _named_tags(load_rows, "tags", "train")


def test_examples_to_predict_without_tags(load):
    splits, _ = load({"train": [[0, 1], [2]], "test": [[-1, -1], [-1]]}, ClassLabel(names=NAMES), do_predict=True)
    assert splits["test"].column_names == ["words"]
    with pytest.raises(UsageError, match="the test split has 1 words without a tag"):
        load({"train": [[0, 1], [2]], "test": [[-1, 1], [2]]}, ClassLabel(names=NAMES), do_predict=True)

"""Files are read as they stand: no word means "missing", no type is guessed, and a name is never a pattern."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Value

from sam_hf.errors import UsageError
from sam_hf.inputs.files import is_csv, read_file


@pytest.fixture
def read(tmp_path):
    def call(content: str | bytes, name: str = "data.csv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
        return read_file(str(path))

    return call


def test_the_words_of_a_csv_stay_words(read):
    words = ["null", "None", "n/a", "NA", "nan", "NaN", "01", "1.0", "1e3", "True", "-", "<NA>", "#N/A", " x "]
    dataset = read("text,label\n" + "".join(f"{word},{word}\n" for word in words))
    assert dataset["text"][:] == dataset["label"][:] == words
    assert is_csv(dataset)


def test_the_type_of_a_csv_column_does_not_change_on_the_way(read):
    values = [*map(str, range(10_000)), "01", "last"]
    assert read("label\n" + "\n".join(values) + "\n")["label"][:] == values


def test_an_empty_field_is_missing_and_an_empty_line_is_no_example(read):
    dataset = read("text,label\n,1\n\nx,\n")
    assert dataset[:] == {"text": [None, "x"], "label": ["1", None]}


def test_quotes_line_breaks_and_long_texts(read):
    long = "word " * 100_000
    dataset = read(f'\ufefftext,label\r\n"a ""b"",\nc",1\r\n{long},2\r\n')
    assert dataset[:] == {"text": ['a "b",\nc', long], "label": ["1", "2"]}


@pytest.mark.parametrize(
    "content, message",
    [
        ("text,label\nx,1\ngood, film,1\n", "line 3 has 3 fields, and the first line 2"),
        ('text,label\n"a\nb",1\nx\n', "line 4 has 1 fields, and the first line 2"),
        ('text,label\nx,1\n"a,1\nb,2\n', "line 3: unexpected end of data"),
        ('text,label\n"a" b,1\n', "line 2: "),
        ("text,text\nx,1\n", "two columns have the name text"),
        ("text;label\nx;1\n", "columns must be separated by commas"),
        ("", "it is empty"),
        (b"text,label\n\xff,1\n", "it is not in UTF-8"),
    ],
)
def test_a_damaged_csv_is_named_with_its_line(read, content, message):
    with pytest.raises(UsageError, match=message):
        read(content)


def test_json_keeps_its_types(read):
    rows = [{"text": "2020-01-01", "label": 1}, {"text": "01", "label": None, "other": [0, 1]}, {"label": 3}]
    dataset = read("\n".join(map(json.dumps, rows)) + "\n\n", "data.jsonl")
    assert dataset["text"][:] == ["2020-01-01", "01", None]
    assert dataset["label"][:] == [1, None, 3]
    assert dataset["other"][:] == [None, [0, 1], None]
    assert dataset.features["label"] == Value("int64")
    assert not is_csv(dataset)


def test_a_list_of_json_objects(read):
    rows = [{"text": "line\u2028break", "label": 0.5}, {"text": "b", "label": 2}]
    dataset = read(json.dumps(rows, indent=1, ensure_ascii=False), "data.json")
    assert dataset[:] == {"text": ["line\u2028break", "b"], "label": [0.5, 2.0]}


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"label": 1}\n{"label": "1"}\n', "line 2: label is a text, and a number before it"),
        ('{"label": 1}\n{"label": true}\n', "line 2: label is true or false, and a number before it"),
        ('{"label": [1, "a"]}\n', "label are not of one kind"),
        ('{"label": 1}\n{"label": \n', "line 2 is no JSON"),
        ("[1, 2]", "example 1 is a number: it must be an object"),
        ('{"label": 1' + "0" * 30 + "}", "label are not of one kind"),
        ('{"text": "\\ud800"}', "the values of text"),
        ("", "it is empty"),
    ],
)
def test_json_that_is_not_a_table(read, content, message):
    with pytest.raises(UsageError, match=message):
        read(content, "data.jsonl")


NAMES = ("data[1].{}", "what?.{}", "all*.{}", "data [v2].{}", "runs[1]/train.{}", "[!a].{}", "{{a,b}}.{}")


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_no_pattern(tmp_path, name, kind):
    """Beside each file stands another that its name would match as a pattern."""

    def write(path: Path, label: str) -> None:
        path.parent.mkdir(exist_ok=True)
        if kind == "parquet":
            pq.write_table(pa.table({"label": [label]}), path)
        else:
            path.write_text(f"label\n{label}\n" if kind == "csv" else json.dumps({"label": label}) + "\n")

    mine = name.format(kind)
    for other in ("data1", "whatX", "all_of_them", "data v", "runs1/train", "b"):
        write(tmp_path / f"{other}.{kind}", "other")
    write(tmp_path / mine, "mine")
    assert read_file(str(tmp_path / mine))["label"][:] == ["mine"]


def test_two_colons_in_a_name(read, tmp_path):
    assert read("label\nx\n", "a::b.csv")["label"][:] == ["x"]
    pq.write_table(pa.table({"label": ["x"]}), tmp_path / "a::b.parquet")
    with pytest.raises(UsageError, match="rename it"):
        read_file(str(tmp_path / "a::b.parquet"))


def test_a_changed_file_is_read_again(read):
    assert read("label\nx\n")["label"][:] == ["x"]
    assert read("label\ny\n")["label"][:] == ["y"]


def test_a_damaged_parquet_is_one_line(tmp_path):
    path = tmp_path / "torn.parquet"
    pq.write_table(pa.table({"label": np.arange(1000)}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UsageError, match=r"torn\.parquet cannot be read"):
        read_file(str(path))


@pytest.mark.parametrize("name, message", [("data.txt", "must end in .csv, .json"), ("none.csv", "does not exist")])
def test_a_file_of_another_kind_or_none(tmp_path, name, message):
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(UsageError, match=message):
        read_file(str(tmp_path / name))


def test_a_file_without_examples(read, tmp_path):
    with pytest.raises(UsageError, match="no example below the names of the columns"):
        read("text,label\n")
    pq.write_table(pa.table({"label": pa.array([], pa.string())}), tmp_path / "none.parquet")
    with pytest.raises(UsageError, match=r"none\.parquet cannot be read: it is empty"):
        read_file(str(tmp_path / "none.parquet"))


def test_json_of_columns_as_pandas_writes_it(read):
    with pytest.raises(UsageError, match="orient='records', lines=True"):
        read(json.dumps({"text": {"0": "a", "1": "b"}, "label": {"0": 0, "1": 1}}), "data.json")

"""Random files of every kind: no traceback, and every label is the one that an independent reading finds."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sam_hf.errors import UsageError
from sam_hf.inputs.options import DataArguments
from sam_hf.inputs.splits import load_labelled
from sam_hf.inputs.texts import check_texts, text_columns

WORDS = [
    "null",
    "None",
    "NA",
    "nan",
    "01",
    "1",
    "2",
    "-1",
    "0.5",
    "good, film",
    'a "b"',
    "ünï",
    "line\nbreak",
    " x",
    "x",
]
ARGS = SimpleNamespace(
    **{"do_train": True, "do_eval": False, "do_predict": False, "eval_on_start": False},
    **{"sharpness_every_eval": None, "seed": 42, "data_seed": None},
)
LABELS = {
    "words": lambda draw: draw.choice(["null", "None", "neg", "pos", "01", "1"]),
    "codes": lambda draw: draw.choice(["01", "02", "10", "A3"]),
    "integers": lambda draw: draw.choice([0, 1, 2, 7, 10]),
    "with a mark": lambda draw: draw.choice([-1, 0, 1, 1, 0, 2]),
    "fractions": lambda draw: round(draw.uniform(-3, 3), 2) + 0.001,
    "not finite": lambda draw: draw.choice([0.5, 1.25, float("nan"), float("inf")]),
    "missing": lambda draw: draw.choice([None, "a", "b", "b"]),
    "mixed": lambda draw: draw.choice([0.5, "word", 1]),
    "names": lambda draw: draw.sample(["a", "b", "c"], draw.randint(0, 3)),
    "vectors": lambda draw: [draw.choice([0, 1]) for _ in range(3)],
    "torn vectors": lambda draw: [draw.choice([0, 1, 1, None]) for _ in range(draw.choice([3, 3, 3, 2]))],
    "booleans": lambda draw: draw.choice([True, False]),
    "objects": lambda draw: {"a": draw.randint(0, 1)},
}


def write(path: Path, rows: list[dict], draw: random.Random) -> bool:
    """Write the rows, sometimes with damage. Return whether the kind of file can hold them."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator=draw.choice(["\n", "\r\n"]))
            writer.writerow(rows[0])
            for row in rows:
                writer.writerow(["" if value is None else value for value in row.values()])
                if draw.random() < 0.01:
                    file.write(draw.choice(["one,too,many,fields\n", "one\n", '"open\n', "\n"]))
    elif path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=draw.random() < 0.5) for row in rows]
        if draw.random() < 0.1:
            lines[draw.randrange(len(lines))] = draw.choice(["{", "[]", "", '{"text": 5, "label": 1}'])
        path.write_text("\n".join(lines), encoding="utf-8")
    else:
        try:
            pq.write_table(pa.Table.from_pylist(rows), path)
        except (pa.ArrowException, TypeError):
            return False
        if draw.random() < 0.05:
            path.write_bytes(path.read_bytes()[: -draw.randint(1, 40)])
    return True


def read_again(path: Path) -> list[tuple[str, object]]:
    """Read texts and labels with other means than the package's."""
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [(row["text"], row["label"]) for row in csv.DictReader(file)]
    if path.suffix == ".jsonl":
        return [
            (row["text"], row["label"]) for row in map(json.loads, filter(None, path.read_text("utf-8").split("\n")))
        ]
    return [(row["text"], row["label"]) for row in pq.ParquetFile(path).read().to_pylist()]


def meaning(label, scheme) -> object:
    """Return what the model must learn for a label as it stands in the file."""
    if scheme.problem_type == "regression":
        return float(label)
    if scheme.problem_type == "single_label_classification":
        return str(label)
    if scheme.is_vector:
        return {name for name, entry in zip(scheme.names, label, strict=True) if entry}
    return set(map(str, label))


def check(seed: int, kind: str, folder: Path) -> bool:
    draw = random.Random(seed)
    make = LABELS[draw.choice(list(LABELS))]
    count = draw.choice([3, 20, 200])
    rows = [{"text": f"{i} {draw.choice(WORDS)}", "label": make(draw)} for i in range(count)]
    path = folder / f"file [{seed}].{kind}"
    if not write(path, rows, draw):
        return False
    try:
        drop = draw.random() < 0.5
        splits, scheme, _ = load_labelled(DataArguments(train_file=str(path), drop_unlabelled=drop), ARGS, "")
        columns = text_columns(splits["train"])
        check_texts(splits, columns)
    except UsageError as error:
        assert len(str(error)) < 500
        return False
    assert columns == ["text"]
    expected = dict(read_again(path))
    found = dict(zip(splits["train"]["text"], splits["train"]["labels"], strict=True))
    assert set(found) <= set(expected)
    for text, label in expected.items():
        if text not in found:
            assert drop and label in (None, "", -1, "-1")
            continue
        wanted, target = meaning(label, scheme), found[text]
        if scheme.problem_type == "regression":
            assert target == pytest.approx(wanted, rel=1e-6)
        elif scheme.problem_type == "single_label_classification":
            assert scheme.names[target] == wanted
        else:
            assert {name for name, entry in zip(scheme.names, target, strict=True) if entry} == wanted
    return True


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_some_random_files(kind, tmp_path):
    assert sum(check(seed, kind, tmp_path) for seed in range(30)) >= 8


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_two_hundred_random_files(kind, tmp_path):
    assert sum(check(seed, kind, tmp_path) for seed in range(1000, 1200)) >= 60

"""
Reading the examples of a file as they stand there. A CSV file holds only text: nothing is guessed from how a field
looks, and no word means "missing". JSON and parquet have types of their own, which are kept.
"""

from __future__ import annotations

import csv
import glob
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    from datasets import Dataset

LOADERS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
# Raise it when the same file is read differently: datasets keeps what it has read
_READER_VERSION = 1
_KINDS = {str: "a text", bool: "true or false", int: "a number", float: "a number", list: "a list", dict: "an object"}


def read_file(file: str) -> Dataset:
    """
    Return the examples in a csv, json, jsonl or parquet file. `file` is a name, never a pattern.

    Raises:
        UsageError: the file does not exist, is of another kind, or cannot be read. The message names the line.
    """
    path = Path(file)
    loader = LOADERS.get(path.suffix.lower())
    if loader is None:
        raise UsageError(f"{file} is not of a known kind: it must end in {', '.join(LOADERS)}")
    if not path.is_file():
        raise UsageError(f"the file {file} does not exist")
    try:
        return _READERS[loader](str(path))
    except UsageError as error:
        raise UsageError(f"the file {file} cannot be read: {error}") from error
    except UnicodeError as error:
        raise UsageError(f"the file {file} cannot be read: it is not in UTF-8 ({error})") from error
    except Exception as error:  # of Arrow, datasets or the operating system
        raise UsageError(f"the file {file} cannot be read: {error.__cause__ or error}") from error


def is_csv(dataset: Dataset) -> bool:
    """Return whether the examples come from a CSV file, in which numbers are written as text."""
    return dataset.info.builder_name == "csv"


def _read_csv(path: str) -> Dataset:
    from datasets import Features, Value

    records = _csv_records(path)
    _, names = next(records, (0, []))
    if not names:
        raise UsageError("it is empty: its first line must name the columns")
    if len(names) == 1 and any(mark in names[0] for mark in ";\t|"):
        raise UsageError(f"its first line is {names[0]!r}: columns must be separated by commas")
    # pandas writes its index as a column without a name
    names = [name or f"Unnamed: {place}" for place, name in enumerate(names)]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"two columns have the name {repeated[0]}")
    if next(records, None) is None:
        raise UsageError("it has no example below the names of the columns")
    dataset = _generated(_csv_rows, path, Features({name: Value("string") for name in names}))
    dataset.info.builder_name = "csv"
    return dataset


def _csv_records(path: str) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the line that each record begins in, counted from 1, and its fields."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # texts may be longer than the usual limit of 128 KiB
    with open(path, newline="", encoding="utf-8-sig") as file:
        records, line = csv.reader(file, strict=True), 1
        try:
            for record in records:
                if record:
                    yield line, record
                line = records.line_num + 1
        except csv.Error as error:
            raise UsageError(f"line {line}: {error}") from error


def _csv_rows(path: str, names: list[str], **_: Any) -> Iterator[dict[str, str | None]]:
    records = _csv_records(path)
    next(records)
    for line, record in records:
        if len(record) != len(names):
            raise UsageError(f"line {line} has {len(record)} fields, and the first line {len(names)}")
        yield {name: field or None for name, field in zip(names, record, strict=True)}


def _read_json(path: str) -> Dataset:
    import pyarrow as pa
    from datasets import Features

    columns: dict[str, None] = {}
    rows = list(_json_objects(path))
    if not rows:
        raise UsageError("it is empty")
    if len(rows) == 1 and all(isinstance(value, dict) for value in rows[0][1].values()):
        allowed = "there must be one object per example (pandas: to_json(orient='records', lines=True))"
        raise UsageError(f"it is one object of columns or rows: {allowed}")
    for _, row in rows:
        columns.update(dict.fromkeys(row))
    arrays = {}
    for name in columns:
        values = [row.get(name) for _, row in rows]
        _check_one_kind(name, values, [place for place, _ in rows])
        try:
            arrays[name] = pa.array(values)
        except (pa.ArrowException, OverflowError, UnicodeError) as error:
            raise UsageError(f"the values of {name} are not of one kind: {error}") from error
    return _generated(_json_rows, path, Features.from_arrow_schema(pa.table(arrays).schema))


def _check_one_kind(name: str, values: list[Any], places: list[str]) -> None:
    first: str | None = None
    for value, place in zip(values, places, strict=True):
        kind = None if value is None else _KINDS[type(value)]
        if kind is not None and first is not None and kind != first:
            raise UsageError(f"{place}: {name} is {kind}, and {first} before it")
        first = first or kind


def _json_objects(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield where each example stands, and the example. A file holds one object per line, or one list of objects."""
    text = Path(path).read_text(encoding="utf-8-sig")
    entries: Iterator[tuple[str, Any]]
    if text.lstrip().startswith("["):
        entries = ((f"example {i}", entry) for i, entry in enumerate(_parsed(text, "it"), 1))
    else:
        lines = enumerate(text.split("\n"), 1)  # JSON allows other line breaks of Unicode inside a text
        entries = ((f"line {i}", _parsed(line, f"line {i}")) for i, line in lines if line.strip())
    for place, entry in entries:
        if not isinstance(entry, dict):
            raise UsageError(f"{place} is {_KINDS.get(type(entry), 'null')}: it must be an object")
        yield place, entry


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{place} is no JSON ({error.msg}): there must be one object per line, or a list of them"
        ) from error


def _json_rows(path: str, names: list[str], **_: Any) -> Iterator[dict[str, Any]]:
    for _place, row in _json_objects(path):
        yield {name: row.get(name) for name in names}


def _generated(rows: Callable[..., Iterator[dict[str, Any]]], path: str, features: Any) -> Dataset:
    """Return the rows as a data set on disk. It is kept in the cache of datasets, and so is what is mapped from it."""
    from datasets import Dataset

    status = os.stat(path)
    known_by = {"path": path, "changed": status.st_mtime_ns, "size": status.st_size, "version": _READER_VERSION}
    return Dataset.from_generator(rows, features=features, gen_kwargs={**known_by, "names": tuple(features)})


def _read_parquet(path: str) -> Dataset:
    import pyarrow.parquet as pq
    from datasets import load_dataset

    # datasets would log these errors before it raises its own
    with pq.ParquetFile(path) as file:
        names, rows = file.schema_arrow.names, file.metadata.num_rows
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise UsageError(f"two columns have the name {repeated[0]}")
    if rows == 0:
        raise UsageError("it is empty")
    if "::" in path:
        raise UsageError('datasets takes "::" in a name for a chain of files: rename it')
    return load_dataset("parquet", data_files=glob.escape(path), split="train")


_READERS: dict[str, Callable[[str], Any]] = {"csv": _read_csv, "json": _read_json, "parquet": _read_parquet}

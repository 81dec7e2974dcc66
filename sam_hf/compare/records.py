"""The results of runs, one small JSON file per run. Folders from several machines can be merged by copying."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .plan import Run

FINISHED = "finished"
FAILED = "failed"


class Records:
    """
    The records in a folder. They are found by the keys of their runs, whatever the names of their files are.

    Args:
        folder (`Path`): `OUT/runs`. It is made when the first record is written.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._by_key: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("*.json")):
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
                record["key"], record["status"]
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{file} is not a record of a run: remove it to run it again") from error
            known = self._by_key.get(record["key"])
            if known is None or known["status"] != FINISHED:  # of the records of two machines, the one with a result
                self._by_key[record["key"]] = record

    def get(self, run: Run) -> dict[str, Any] | None:
        return self._by_key.get(run.key)

    def finished(self, run: Run) -> dict[str, Any] | None:
        """Return the record of `run` if the run has finished, otherwise `None`."""
        record = self.get(run)
        return record if record is not None and record["status"] == FINISHED else None

    def others(self, runs: Iterable[Run]) -> int:
        """Return the number of records that belong to none of `runs`."""
        return len(self._by_key.keys() - {run.key for run in runs})

    def add(self, run: Run, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record of `run`. An incomplete file is never left under the record's name."""
        record = {
            "key": run.key,
            "status": FINISHED,
            "recipe": run.recipe,
            "variant": run.variant,
            "purpose": run.purpose,
            "label_noise": run.label_noise,
            "seed": run.seed,
            **content,
            "options": dict(run.options),
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / f"{run.name}.json"
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, file)
        self._by_key[run.key] = record
        return record

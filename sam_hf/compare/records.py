"""One small JSON a run: the folder of results, which can be copied together from several machines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UsageError
from .plan import Run

FINISHED = "finished"
FAILED = "failed"


class Records:
    """
    The records of a folder, found by their runs' keys whatever they are named.

    Args:
        folder (`Path`): `OUT/runs`, made if it is not there.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._by_key: dict[str, dict[str, Any]] = {}
        for file in sorted(folder.glob("*.json")):
            try:
                record = json.loads(file.read_text(encoding="utf-8"))
                record["key"], record["status"]
            except (ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{file} is no record of a run: remove it, and the run is done anew") from error
            known = self._by_key.get(record["key"])
            if known is None or known["status"] != FINISHED:  # of two machines' records the one that has a result
                self._by_key[record["key"]] = record

    def get(self, run: Run) -> dict[str, Any] | None:
        return self._by_key.get(run.key)

    def finished(self, run: Run) -> dict[str, Any] | None:
        """The record of `run` if it came to its end, `None` otherwise."""
        record = self.get(run)
        return record if record is not None and record["status"] == FINISHED else None

    def add(self, run: Run, content: Mapping[str, Any]) -> dict[str, Any]:
        """Write the record of `run`: either the whole file is there or none."""
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
        file = self.folder / f"{run.name}.json"
        unfinished = file.with_suffix(f".{os.getpid()}.tmp")
        unfinished.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        os.replace(unfinished, file)
        self._by_key[run.key] = record
        return record

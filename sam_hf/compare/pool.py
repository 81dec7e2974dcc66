"""A pool of worker processes that execute runs."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from .plan import Run
from .records import FAILED
from .worker import WorkerSettings, serve_runs


class Pool:
    """
    Worker processes that live as long as there are runs. If one dies, its run has failed and it is replaced.

    `concurrent.futures` does not tell which run a dead process had, and then fails all the others too.

    Args:
        jobs (`int`): number of workers.
        settings (`WorkerSettings`): settings of the first worker.
        devices (`Sequence[str]`): CUDA devices to share out among the workers, empty if there are fewer than two.
    """

    def __init__(self, jobs: int, settings: WorkerSettings, devices: Sequence[str] = ()):
        self.jobs = jobs
        self.settings = settings
        self.devices = devices
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[Connection, Any] = {}
        self._started = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for connection in self._workers:
            connection.close()
        for process in self._workers.values():
            # Idle workers end by themselves. Busy ones end after their run, which takes too long after an error
            process.join(20 if kind is None else 2)
            if process.is_alive():
                process.kill()
                process.join()

    def run_all(self, runs: Sequence[Run], done: Callable[[Run, dict[str, Any]], None]) -> None:
        """Execute all runs, and call `done` with each run and the content of its record as soon as it ends."""
        waiting = deque(runs)
        busy: dict[Connection, Run] = {}
        while waiting or busy:
            while waiting and len(busy) < self.jobs:
                connection = next((c for c in self._workers if c not in busy), None) or self._start()
                try:
                    connection.send(waiting[0])
                except (BrokenPipeError, ConnectionResetError):
                    self._remove(connection)  # the run has not begun
                else:
                    busy[connection] = waiting.popleft()
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                run = busy.pop(ready)
                try:
                    content = ready.recv()
                except (EOFError, ConnectionResetError):
                    content = {"status": FAILED, "error": f"its process ended with {self._remove(ready)}"}
                done(run, content)

    def _start(self) -> Connection:
        connection, end_of_worker = self._context.Pipe()
        device = self.devices[self._started % len(self.devices)] if self.devices else None
        settings = replace(self.settings, number=self._started, device=device)
        self._started += 1
        process = self._context.Process(target=serve_runs, args=(end_of_worker, settings))
        process.start()
        end_of_worker.close()
        self._workers[connection] = process
        return connection

    def _remove(self, connection: Connection) -> str:
        """Forget a worker that died, and return how it ended."""
        process = self._workers.pop(connection)
        connection.close()
        process.join()
        code = process.exitcode
        return f"signal {-code}" if code < 0 else f"exit status {code}"


def visible_devices() -> list[str]:
    """Return the CUDA devices by their names in `CUDA_VISIBLE_DEVICES`, or none if there are fewer than two."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(i) for i in range(count)]

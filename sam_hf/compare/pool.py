"""Runs over several worker processes, each of them resumable by its record."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection, wait
from typing import Any

from .plan import Run
from .records import FAILED
from .worker import WorkerSettings, work


class Pool:
    """
    Workers that live as long as there are runs for them; one that dies is replaced, and its run has failed.

    `concurrent.futures` would not tell which run a dead process had, and give up all others.

    Args:
        jobs (`int`): workers at a time.
        settings (`WorkerSettings`): the first worker's.
        devices (`Sequence[str]`): CUDA devices to share out, empty where there is but one or none.
    """

    def __init__(self, jobs: int, settings: WorkerSettings, devices: Sequence[str] = ()):
        self.jobs = jobs
        self.settings = settings
        self.devices = devices
        self._context = multiprocessing.get_context("spawn")
        self._workers: dict[Connection, Any] = {}
        self._numbers = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for connection in self._workers:
            connection.close()
        for process in self._workers.values():
            # Idle ones end by themselves, busy ones only after their run, which an error or Ctrl-C does not wait for
            process.join(20 if kind is None else 2)
            if process.is_alive():
                process.kill()
                process.join()

    def carry_out(self, runs: Sequence[Run], done: Callable[[Run, dict[str, Any]], None]) -> None:
        """Call `done` with every run and the content of its record, as they come to their end."""
        waiting = list(reversed(runs))
        busy: dict[Connection, Run] = {}
        idle = list(self._workers)
        while waiting or busy:
            while waiting and (idle or len(self._workers) < self.jobs):
                connection = idle.pop() if idle else self._start()
                run = waiting.pop()
                try:
                    connection.send(run)
                except (BrokenPipeError, ConnectionResetError):
                    self._bury(connection)
                    waiting.append(run)  # it never began
                    continue
                busy[connection] = run
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                run = busy.pop(ready)
                try:
                    content = ready.recv()
                    idle.append(ready)
                except (EOFError, ConnectionResetError):
                    content = {"status": FAILED, "error": f"its process ended with {self._bury(ready)}"}
                done(run, content)

    def _start(self) -> Connection:
        ours, theirs = self._context.Pipe()
        number = self._numbers
        self._numbers += 1
        device = self.devices[number % len(self.devices)] if self.devices else None
        settings = replace(self.settings, number=number, device=device)
        process = self._context.Process(target=work, args=(theirs, settings))
        process.start()
        theirs.close()
        self._workers[ours] = process
        return ours

    def _bury(self, connection: Connection) -> str:
        process = self._workers.pop(connection)
        connection.close()
        process.join()
        code = process.exitcode
        return f"signal {-code}" if code < 0 else f"exit status {code}"


def visible_devices() -> list[str]:
    """The CUDA devices to share out among workers, by the names of `CUDA_VISIBLE_DEVICES`; empty if fewer than two."""
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return []
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    return names.split(",")[:count] if names else [str(i) for i in range(count)]

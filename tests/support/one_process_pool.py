"""A pool for the tests of `sam-hf compare` that runs everything in this process."""

from __future__ import annotations

from sam_hf.compare.worker import execute_run


class PoolInThisProcess:
    """Executes runs here: a process of its own costs seconds."""

    def __init__(self, jobs, settings, devices=()):
        self.settings = settings

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def run_all(self, runs, done):
        for run in runs:
            done(run, execute_run(run, self.settings))

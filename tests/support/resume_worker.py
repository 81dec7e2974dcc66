"""Trains in child processes that are killed at random moments, until one of them comes to the end."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from tiny import bert, sentences, snapshot, trainer_of

from sam_hf.trainer.checkpoints import last_whole_checkpoint

UPDATES = 24


def train(folder: Path) -> None:
    model = bert(dropout=0.2, dtype=torch.float32)
    trainer = trainer_of(
        model,
        sentences(22),
        folder,
        sam_rho=0.1,
        max_steps=UPDATES,
        gradient_accumulation_steps=2,
        train_sampling_strategy="random",
        optim="adamw_torch",
        learning_rate=0.01,
        lr_scheduler_type="linear",
        save_strategy="steps",
        save_steps=1,
        save_total_limit=2,
    )
    trainer.train(resume_from_checkpoint=last_whole_checkpoint(folder) is not None)
    torch.save(snapshot(model), folder / "final.pt")


def start(folder: Path) -> int:
    """A child that trains. Forked, and by a process that ran no backward pass itself: its threads would be missing."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            train(folder)
            code = 0
        finally:
            os._exit(code)
    return child


def until_done(folder: Path, delays: random.Random, longest: float) -> list[str]:
    """What the newest checkpoint held at each kill."""
    folder.mkdir()
    kills = []
    while True:
        child = start(folder)
        time.sleep(delays.uniform(0, longest))
        os.kill(child, signal.SIGKILL)  # one that has ended waits for its parent, and does not mind
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            assert os.WEXITSTATUS(status) == 0, "a child failed by itself"
            return kills
        last = max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), default=folder)
        kills.append(f"{last.name}: {len(list(last.iterdir()))} files")


if __name__ == "__main__":
    out, wanted = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    begin = time.monotonic()
    (out / "whole").mkdir()
    assert os.waitpid(start(out / "whole"), 0)[1] == 0
    needed = time.monotonic() - begin
    expected = torch.load(out / "whole" / "final.pt")
    delays, kills, runs = random.Random(0), [], 0
    while len(kills) < wanted:
        kills += until_done(out / f"killed-{runs}", delays, longest=needed)
        final = torch.load(out / f"killed-{runs}" / "final.pt")
        assert all(torch.equal(final[name], expected[name]) for name in expected), f"run {runs} ended elsewhere"
        runs += 1
    print(json.dumps({"kills": kills, "runs": runs}))

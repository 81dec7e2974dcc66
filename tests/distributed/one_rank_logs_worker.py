"""Trains on this rank with a callback that logs a loss of its own on the first rank only."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from ranks import leave
from tiny import perceptron, points, trainer_of
from transformers import TrainerCallback


class LogsAlone(TrainerCallback):
    def __init__(self):
        self.trainer = None

    def on_step_begin(self, args, state, control, **kwargs):  # at a step's end, a log would switch off Trainer's own
        if args.process_index == 0:
            self.trainer.log({"loss": 1.0, "mine": 2.0})


if __name__ == "__main__":
    out = Path(sys.argv[1])
    callback = LogsAlone()
    trainer = trainer_of(perceptron(), points(64), out, callbacks=[callback], sam_rho=0.1, logging_steps=2)
    callback.trainer = trainer
    trainer.train()
    (out / f"{trainer.args.process_index}.json").write_text(json.dumps(trainer.state.log_history))
    leave()

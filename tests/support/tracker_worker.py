"""Trains with every tracker that is named, and leaves what they stored beside the log history."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

SECRET = "hf_SecretOfThisTest"


def main(out: Path, trackers: list[str]) -> None:
    # Read when the trackers are imported
    os.environ |= {"TENSORBOARD_LOGGING_DIR": str(out / "tensorboard"), "TRACKIO_DIR": str(out / "trackio")}
    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": str(out / "wandb"), "WANDB_CACHE_DIR": str(out / "cache")}
    os.environ |= {"WANDB_CONFIG_DIR": str(out / "cache"), "WANDB_DATA_DIR": str(out / "cache")}
    for folder in ("wandb", "cache"):
        (out / folder).mkdir()
    from tiny import perceptron, points, trained

    trainer = trained(
        perceptron(),
        points(32),
        out / "run",
        eval_dataset=points(8),
        max_steps=6,
        logging_steps=2,
        eval_strategy="steps",
        eval_steps=3,
        sam_method="gsam",  # which logs the cosine too
        sam_rho=0.125,
        sharpness_every_eval=True,
        sharpness_examples=8,
        report_to=trackers,
        hub_token=SECRET,
    )
    (out / "history.json").write_text(json.dumps(trainer.state.log_history), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

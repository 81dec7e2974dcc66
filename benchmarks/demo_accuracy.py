"""
Accuracy of a demo configuration with SAM, with plain AdamW, and with AdamW for twice the epochs (SAM's compute).

    python benchmarks/demo_accuracy.py --task text --output benchmarks/results/demo_text.json

Each run is the shipped program with the shipped configuration and a seed. Finished runs are kept in the result file:
the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

from sam_hf.commands.environment import environment

ROOT = Path(__file__).parent.parent


def variants(config: dict) -> dict[str, list[str]]:
    epochs = config["num_train_epochs"]
    return {
        "sam": [],
        "none": ["--sam_method", "none"],
        "none, twice the epochs": ["--sam_method", "none", "--num_train_epochs", str(2 * epochs)],
    }


def accuracy(task: str, options: list[str], seed: int) -> float:
    with tempfile.TemporaryDirectory() as output_dir:
        command = [
            *(sys.executable, f"scripts/finetune_{task}.py", "--config", f"configs/demo_{task}.yaml"),
            *("--output_dir", output_dir, "--seed", str(seed), "--eval_on_start", "false", "--eval_strategy", "no"),
            *("--disable_tqdm", "true", *options),
        ]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, env=dict(os.environ, PYTHONPATH="."))
        return json.loads((Path(output_dir) / "all_results.json").read_text())["eval_accuracy"]


def summary(runs: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    table = {}
    for variant, by_seed in runs.items():
        values = list(by_seed.values())
        spread = statistics.stdev(values) if len(values) > 1 else float("nan")
        table[variant] = {"mean": statistics.mean(values), "stdev": spread, "seeds": len(values)}
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=("text", "image"), required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", help="which of them; default: all")
    parser.add_argument("--label_noise", type=float, default=0.0)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    config = yaml.safe_load((ROOT / "configs" / f"demo_{options.task}.yaml").read_text())
    result = json.loads(options.output.read_text()) if options.output.exists() else {"runs": {}}
    result |= {"environment": environment(), "config": config, "label_noise": options.label_noise}
    for seed in options.seeds:
        for variant, extra in variants(config).items():
            if options.variants and variant not in options.variants:
                continue
            done = result["runs"].setdefault(variant, {})
            if str(seed) not in done:
                done[str(seed)] = accuracy(options.task, [*extra, "--label_noise", str(options.label_noise)], seed)
                print(f"seed {seed}, {variant}: {done[str(seed)]:.4f}", flush=True)
            result["summary"] = summary({name: runs for name, runs in result["runs"].items() if runs})
            options.output.parent.mkdir(parents=True, exist_ok=True)
            options.output.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["summary"], indent=2))


if __name__ == "__main__":
    main()

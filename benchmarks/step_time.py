"""
Time per update and peak memory of every method against plain Trainer, on a model of MiniLM's size.

    python benchmarks/step_time.py --output benchmarks/results/step_time.json

Time: the variants train in turn in one process, one update each and a whole interval where updates differ, so that a
machine whose speed drifts slows them alike; the ratio is taken round by round. Without a GPU it is the CPU time of one
thread. Memory: the peak of one fresh process a variant. nbar trains LoRA adapters: it is compared with plain training
of these.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import BertConfig, BertForSequenceClassification, TrainerCallback, set_seed
from transformers.utils import logging

from sam_hf import SAMTrainer, SAMTrainingArguments
from sam_hf.commands.environment import environment
from sam_hf.methods import METHODS

# Arguments; "updates" where one is not like the other; "uncounted" first ones, where a run asks something once
VARIANTS: dict[str, dict[str, Any]] = {
    "none": {"sam_method": "none"},
    **{method: {"sam_method": method} for method in METHODS if method not in ("looksam", "nbar")},
    "looksam (every 5th update)": {"sam_method": "looksam", "updates": 5},
    "sam, m = micro-batch, 2 micro-batches": {"gradient_accumulation_steps": 2, "sam_m": 16},
    "sam, ascent fraction 1/4": {"sam_ascent_fraction": 0.25, "updates": 2, "uncounted": 1},
    "sam, normalisation layers only": {"sam_target_modules": "norm"},
    "sam, every 10th update": {"sam_interval": 10, "updates": 10},
    "none, LoRA": {"sam_method": "none", "lora": True},
    "nbar, LoRA": {"sam_method": "nbar", "lora": True},
}
BASELINES = {"none, LoRA": "none, LoRA", "nbar, LoRA": "none, LoRA"}


class UpdateTimer(TrainerCallback):
    """Seconds from the start of each update to its end; loading data is not in them."""

    def __init__(self, uncounted: int):
        self.uncounted = uncounted
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = self._now()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step > self.uncounted:
            self.seconds.append(self._now() - self._start)

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


def build(variant: str, options: argparse.Namespace, output_dir: str) -> tuple[SAMTrainer, UpdateTimer]:
    set_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    settings = dict(VARIANTS[variant])
    micro_batch = options.batch_size // settings.get("gradient_accumulation_steps", 1)
    updates = max(options.updates, settings.pop("updates", 1))
    lora, uncounted = settings.pop("lora", False), settings.pop("uncounted", 0)
    if "sam_m" in settings:
        settings["sam_m"] = micro_batch
    args = SAMTrainingArguments(
        output_dir,
        per_device_train_batch_size=micro_batch,
        max_steps=updates,
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        **settings,
    )
    tokens = torch.randint(0, config.vocab_size, (options.batch_size * updates, options.length))
    data = [{"input_ids": row, "labels": index % 2} for index, row in enumerate(tokens)]
    timer = UpdateTimer(uncounted)
    model = BertForSequenceClassification(config)
    if lora:
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"]))
    return SAMTrainer(model=model, args=args, train_dataset=data, callbacks=[timer]), timer


def time_in_turn(options: argparse.Namespace, output_dir: str) -> dict:
    trainers = {variant: build(variant, options, output_dir) for variant in VARIANTS}
    rounds: list[dict[str, float]] = []
    for _ in range(options.rounds + 1):
        row = {}
        for variant, (trainer, timer) in trainers.items():
            timer.seconds.clear()
            trainer.train()
            row[variant] = statistics.mean(timer.seconds)
        rounds.append(row)
        print({variant: round(seconds, 3) for variant, seconds in row.items()}, flush=True)
    counted = rounds[1:]  # the first one warms up
    return {
        variant: {
            "seconds_per_update": spread([row[variant] for row in counted]),
            "times_plain": spread([row[variant] / row[BASELINES.get(variant, "none")] for row in counted]),
        }
        for variant in VARIANTS
    }


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def peak_memory(variant: str, options: argparse.Namespace, output_dir: str) -> dict:
    trainer, _ = build(variant, options, output_dir)
    trainer.train()
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = peak_resident_bytes()
    weights = sum(p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad)
    return {"peak_bytes": peak, "trained_bytes": weights}


def peak_resident_bytes() -> int:
    # Not getrusage: a child's ru_maxrss starts from what its parent held when it was forked
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def memory_by_process() -> dict:
    # Three updates: only from the second one on does the optimizer's state take part in the peak
    command = [sys.executable, __file__, "--batch_size", "2", "--length", "8", "--updates", "3"]
    result = {}
    for variant in VARIANTS:
        answer = subprocess.run([*command, "--memory_of", variant], capture_output=True, text=True, check=True)
        result[variant] = json.loads(answer.stdout.splitlines()[-1])
    for variant, row in result.items():
        plain = result[BASELINES.get(variant, "none")]["peak_bytes"]
        row["copies_over_plain"] = (row["peak_bytes"] - plain) / row["trained_bytes"]
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch_size", type=int, default=32, help="examples of one update")
    parser.add_argument("--length", type=int, default=128, help="tokens of one example")
    parser.add_argument("--updates", type=int, default=1, help="updates a variant in each round, at least")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds")
    parser.add_argument("--output", type=Path, help="result file")
    parser.add_argument("--memory_only", action="store_true", help="measure the memory anew in the result file")
    parser.add_argument("--memory_of", choices=list(VARIANTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as output_dir:
        if options.memory_of:
            print(json.dumps(peak_memory(options.memory_of, options, output_dir)))
            return
        if options.memory_only:
            result = json.loads(options.output.read_text())
        else:
            result = {
                "environment": environment(),
                "settings": {k: getattr(options, k) for k in ("batch_size", "length", "updates", "rounds")},
                "time": time_in_turn(options, output_dir),
            }
        result |= {"memory_environment": environment(), "memory": memory_by_process()}
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()

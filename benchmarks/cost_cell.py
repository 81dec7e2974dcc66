"""Measures what updates of several variants cost on one model, batch and precision: time, FLOPs and memory."""

from __future__ import annotations

import gc
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rivals import HandWrittenLoop, TwoPassTrainer, missing
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, TrainerCallback, set_seed

from sam_hf import SAMTrainer, SAMTrainingArguments
from sam_hf.methods import METHODS

PLAIN = "none"
# Arguments of the trainer. Those that are not: "cycle" is the number of updates after which their kinds repeat;
# "rival", "loop" and "lora" say what is built
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {"sam_method": "none"},
    **{method: {"sam_method": method} for method in METHODS if method not in ("looksam", "nbar")},
    "looksam (every 5th update)": {"sam_method": "looksam", "cycle": 5},
    "sam, radius auto": {"sam_rho_schedule": "auto"},
    "sam, m = micro-batch, 2 micro-batches": {"gradient_accumulation_steps": 2, "sam_m": "micro-batch"},
    "sam, ascent fraction 1/4": {"sam_ascent_fraction": 0.25},
    "sam, normalisation layers only": {"sam_target_modules": "norm"},
    "sam, every 10th update": {"sam_interval": 10, "cycle": 10},
    "none, LoRA": {"sam_method": "none", "lora": True},
    "nbar, LoRA": {"sam_method": "nbar", "lora": True},
    "davda54's SAM in Trainer": {"rival": "davda54"},
    "davda54's SAM, hand-written loop": {"rival": "davda54", "loop": True},
    "pytorch_optimizer's SAM in Trainer": {"rival": "pytorch_optimizer"},
}
BASELINES = {"none, LoRA": "none, LoRA", "nbar, LoRA": "none, LoRA"}
BASELINE_UPDATES = 5  # the least that is counted: their noise is in every ratio

MODELS = {
    "tiny": {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 100},
    "quarter": {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4},
    "small": {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},  # all-MiniLM-L6
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "large": {"hidden_size": 1152, "num_hidden_layers": 26, "num_attention_heads": 18},  # 20 times small
}

# Little arithmetic, so that what an update does to the weights is a large part of its time
TINY_BATCH = {"batch_size": 2, "length": 8}


@dataclass(frozen=True)
class Cell:
    """
    What is measured at once.

    Args:
        batch_size: examples per update on each process.
        updates: the least number of counted updates per turn; where updates differ, a whole cycle is counted.
        uncounted: updates before the counted ones, in which the optimizer creates its state and the allocator warms
            up. Two, because the first update of msam and of the radius auto is plain.
        rounds: the largest number of turns of each variant.
        seconds: no round begins after this time, except the first. FLOPs are counted before it starts.
    """

    model: str = "small"
    precision: str = "fp32"
    batch_size: int = 32
    length: int = 128
    accumulation: int = 1
    updates: int = 1
    uncounted: int = 2
    rounds: int = 5
    seconds: float = float("inf")


class UpdateTimer(TrainerCallback):
    """Measures the counted updates as one block: seconds, FLOPs and, on a GPU, peak memory."""

    def __init__(self, cell: Cell, updates: int, flops: FlopCounterMode | None, at_start: Callable[[], Any] | None):
        self._first, self._last = cell.uncounted, cell.uncounted + updates
        self._flops, self._at_start = flops, at_start
        self.seconds = self.flops = self.peak_bytes = 0.0

    def on_step_begin(self, args, state, control, **kwargs):
        self.begin(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.end(state.global_step)

    def begin(self, update: int) -> None:
        if update == self._first:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                torch.cuda.reset_peak_memory_stats()
            self._flops_before = self._flops.get_total_flops() if self._flops else 0
            if self._at_start:
                self._at_start()
            self._start = clock()

    def end(self, done: int) -> None:
        if done == self._last:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
                self.peak_bytes = torch.cuda.max_memory_allocated()
            updates = self._last - self._first
            self.seconds = (clock() - self._start) / updates
            if self._flops:
                self.flops = (self._flops.get_total_flops() - self._flops_before) / updates


def clock() -> float:
    """
    Return a time in seconds.

    Without a GPU it is processor time, which other work on the machine changes less; it does not include waiting.
    """
    wall = torch.cuda.is_available() or torch.distributed.is_initialized()
    return time.perf_counter() if wall else time.process_time()


def flop_counter() -> FlopCounterMode:
    """Return torch's counter with the fused attention of the CPU added. By itself it knows only that of GPUs."""
    aten = torch.ops.aten
    attention = {
        aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: sdpa_flop_count(
            q, k, v
        ),
        aten._scaled_dot_product_flash_attention_for_cpu_backward: (
            lambda grad, q, k, v, *_, out_shape=None, **__: sdpa_backward_flop_count(grad, q, k, v)
        ),
    }
    return FlopCounterMode(display=False, custom_mapping=attention)


class Bench:
    """Runs the turns of one cell. All turns share the models; each has its own optimizer and trainer."""

    def __init__(self, cell: Cell, output_dir: str):
        self.cell, self._output_dir = cell, output_dir
        self._models: dict[bool, nn.Module] = {}

    def turn(
        self, variant: str, flops: FlopCounterMode | None = None, at_start: Callable[[], Any] | None = None
    ) -> UpdateTimer:
        settings = {key: value for key, value in VARIANTS[variant].items() if key != "cycle"}
        model = self._model(settings.pop("lora", False))
        updates = self.counted_updates(variant)
        timer = UpdateTimer(self.cell, updates, flops, at_start)
        self._trainer(settings, model, updates, timer).train()
        # In mixed precision accelerate wraps the model's forward; the wrappers of all turns would accumulate
        model.__dict__.pop("forward", None)
        model.zero_grad()
        gc.collect()
        return timer

    def counted_updates(self, variant: str) -> int:
        least = BASELINE_UPDATES if variant in (PLAIN, *BASELINES.values()) else 1
        return max(self.cell.updates, VARIANTS[variant].get("cycle", 1), least)

    def trained_bytes(self, variant: str) -> int:
        model = self._model(VARIANTS[variant].get("lora", False))
        return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)

    def parameters(self) -> int:
        return sum(p.numel() for p in self._model(False).parameters())

    def _model(self, lora: bool) -> nn.Module:
        # Under DDP every turn has its own model: reducers would stay hooked to the parameters
        if lora not in self._models or torch.distributed.is_initialized():
            set_seed(0)
            config = BertConfig(**MODELS[self.cell.model], attn_implementation="sdpa")
            config.intermediate_size = 4 * config.hidden_size
            with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
                self._models[lora] = BertForSequenceClassification(config)
            if lora:
                from peft import LoraConfig, get_peft_model

                adapters = LoraConfig(task_type="SEQ_CLS", target_modules=["query", "value"])
                self._models[lora] = get_peft_model(self._models[lora], adapters)
        return self._models[lora]

    def _trainer(self, settings: dict[str, Any], model: nn.Module, updates: int, timer: UpdateTimer) -> Any:
        cell, steps = self.cell, self.cell.uncounted + updates
        settings = {"gradient_accumulation_steps": cell.accumulation, **settings}
        if settings.get("sam_method") not in ("none", "nbar"):
            settings.setdefault("sam_rho_schedule", "constant")  # as the rivals have it; "radius auto" is a variant
        micro_batch = cell.batch_size // settings["gradient_accumulation_steps"]
        if settings.get("sam_m") == "micro-batch":
            settings["sam_m"] = micro_batch
        rival, loop = settings.pop("rival", None), settings.pop("loop", False)
        args = SAMTrainingArguments(
            self._output_dir,
            per_device_train_batch_size=micro_batch,
            max_steps=steps,
            save_strategy="no",
            logging_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            bf16=cell.precision == "bf16",
            fp16=cell.precision == "fp16",
            **settings,
        )
        generator = torch.Generator().manual_seed(0)
        rows = cell.batch_size * steps * args.world_size
        tokens = torch.randint(0, model.config.vocab_size, (rows, cell.length), generator=generator)
        data = [{"input_ids": row, "labels": index % 2} for index, row in enumerate(tokens)]
        options: dict[str, Any] = {"model": model, "args": args, "train_dataset": data}
        if loop:
            return HandWrittenLoop(TwoPassTrainer(rival=rival, **options), timer)
        trainer = TwoPassTrainer(rival=rival, **options) if rival else SAMTrainer(**options)
        trainer.add_callback(timer)
        trainer.remove_callback(PrinterCallback)
        return trainer


def write(result: dict[str, Any], path: Path | None) -> None:
    """Write the result so far. It is called after each part, so that an interrupted run keeps its measurements."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        unfinished.write_text(json.dumps(result, indent=2) + "\n")
        unfinished.replace(path)


def possible(variants: list[str]) -> tuple[list[str], dict[str, str]]:
    """Return the variants that can run here, and the reasons why the others cannot."""
    left_out = {}
    for variant in variants:
        settings = VARIANTS[variant]
        if missing(settings.get("rival", "")):
            left_out[variant] = "pytorch_optimizer is not installed"
        if settings.get("lora") and find_spec("peft") is None:
            left_out[variant] = "peft is not installed"
    return [variant for variant in variants if variant not in left_out], left_out


def measure(cell: Cell, variants: list[str], output_dir: str, with_flops: bool = True) -> dict[str, Any]:
    """
    Measure all variants of a cell in turn, round by round.

    Each round begins with another variant, so that the effect of a place in the round is shared by all of them. Ratios
    are taken within a round.

    Args:
        with_flops (`bool`, *optional*, defaults to `True`): count FLOPs in a first round that is not timed.
    """
    bench = Bench(cell, output_dir)
    result: dict[str, Any] = {"settings": {**asdict(cell), "parameters": bench.parameters()}}
    result["settings"].pop("seconds")
    if with_flops:
        counted = {}
        for variant in variants:
            with flop_counter() as flops:
                counted[variant] = bench.turn(variant, flops).flops
        result["flops"] = {
            v: {"per_update": n, "times_plain": n / counted[BASELINES.get(v, PLAIN)]} for v, n in counted.items()
        }
    rounds: list[dict[str, UpdateTimer]] = []
    started = time.monotonic()
    while not rounds or (len(rounds) < cell.rounds and time.monotonic() - started < cell.seconds):
        first = len(rounds) * (len(variants) // 3 + 1) % len(variants)
        rounds.append({variant: bench.turn(variant) for variant in variants[first:] + variants[:first]})
    result["settings"]["rounds"] = len(rounds)
    result["time"] = {
        variant: {
            "seconds_per_update": spread([row[variant].seconds for row in rounds]),
            "times_plain": spread(
                [row[variant].seconds / row[BASELINES.get(variant, PLAIN)].seconds for row in rounds]
            ),
        }
        for variant in variants
    }
    if torch.cuda.is_available():
        peaks = {v: max(row[v].peak_bytes for row in rounds) for v in variants}
        result["memory"] = memory_table(peaks, {v: bench.trained_bytes(v) for v in variants})
    return result


def spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def memory_table(peaks: dict[str, float], trained: dict[str, int]) -> dict[str, dict[str, float]]:
    return {
        variant: {
            "peak_bytes": peak,
            "trained_bytes": trained[variant],
            "copies_over_plain": (peak - peaks[BASELINES.get(variant, PLAIN)]) / trained[variant],
        }
        for variant, peak in peaks.items()
    }

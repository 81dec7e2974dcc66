"""
Measures the time and memory that `sam-hf sharpness` with its defaults needs for the five largest eigenvalues of the
Hessian: of the finetuned demo text model, and of a model of 110 M parameters.

    python scripts/finetune_text.py --config configs/demo_text.yaml
    python benchmarks/sharpness_cost.py --model outputs/demo_text --output benchmarks/results/sharpness_cost.json

Each case runs in its own process. Its memory is the peak that the kernel counted (VmHWM), including Python and torch.
The CPU seconds of all threads, divided by the number of threads, are about the time on an otherwise idle machine.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

EIGENVALUES = ["--hessian", "--trace_probes", "0", "--density_probes", "0", "--disable_tqdm", "--use_cpu"]
DATA = ["--dataset_name", "demo:rotten-tomatoes", "--max_seq_length", "48"]
RANDOM = "BERT-base with random weights, 8 examples"
CASES: dict[str, list[str]] = {
    "demo text model, 256 examples": ["--max_train_samples", "1000"],
    "the same to a tolerance of 0.001": ["--max_train_samples", "1000", "--tolerance", "0.001"],
    RANDOM: ["--max_examples", "8"],
}


def random_bert_base(folder: str) -> str:
    """Save a model of 110 M parameters with the demo model's tokenizer, and return the folder."""
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from sam_hf.inputs.checkpoints import model_path

    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig()).save_pretrained(folder)
    AutoTokenizer.from_pretrained(model_path("demo:minilm")).save_pretrained(folder)
    return folder


def peak_resident_bytes() -> int:
    # Not getrusage: a child's ru_maxrss starts from what its parent held when it was forked
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


def measure(model: str, options: list[str]) -> dict[str, Any]:
    """Measure one case in this process."""
    import torch

    from sam_hf.commands.sharpness.command import main

    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        main(["--model", model, "--out", folder, *DATA, *EIGENVALUES, *options])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        result = json.loads(Path(folder, "sharpness.json").read_text())
    peak = peak_resident_bytes()
    (row,) = result["models"]
    return {
        "parameters": row["parameters"],
        "examples": result["settings"]["examples"],
        "tolerance": result["settings"]["measurements"]["tolerance"],
        **{key: row["hessian"][key] for key in ("products", "converged", "eigenvalues", "residuals")},
        "measuring_seconds": result["settings"]["seconds"],
        "wall_seconds": round(wall, 1),
        "cpu_seconds": round(cpu, 1),
        "threads": torch.get_num_threads(),
        "peak_gib": round(peak / 2**30, 2),
        "environment": result["environment"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="the finetuned demo text model")
    parser.add_argument("--output", required=True)
    parser.add_argument("--case", choices=list(CASES), help="run only this case, in this process")
    parser.add_argument("--option", nargs="*", default=[], help="more options of sam-hf sharpness, without the dashes")
    options = parser.parse_args()
    if options.case is not None:
        more = [*CASES[options.case], *(f"--{given}" for given in options.option)]
        Path(options.output).write_text(json.dumps(measure(options.model, more)))
        return
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        random = random_bert_base(folder)
        for case in CASES:
            model, output = random if case == RANDOM else options.model, Path(folder, "case.json")
            words = ["--model", model, "--output", str(output), "--case", case, "--option", *options.option]
            subprocess.run([sys.executable, __file__, *words], check=True)
            row = json.loads(output.read_text())
            environment = row.pop("environment")
            results[case] = row
            print(f"{case}: {row['products']} products, {row['wall_seconds']} s, {row['peak_gib']} GiB")
    text = json.dumps({"environment": environment, "cases": results}, indent=1)
    Path(options.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""
Measures the flatness of the models that a comparison trained: λmax, λmax/λ5, trace and m-sharpness, for every method
and seed.

    sam-hf compare benchmarks/flatness_text.yaml --output_dir OUT --keep_models
    python benchmarks/flatness.py --comparison OUT --output benchmarks/results/flatness_text.json

For image models, add the `--train_file` and the `--max_train_samples` of the runs. All models are measured on the same
training examples with their right labels, in evaluation mode, so their numbers can be compared. The result file keeps
finished models: an interrupted command continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from functools import partial
from pathlib import Path

from sam_hf.reports.environment import environment


def measure(name: str, options: argparse.Namespace) -> dict:
    import torch

    from sam_hf.commands.sharpness.examples import batches_for, load_examples, scheme_of
    from sam_hf.commands.sharpness.models import find_checkpoint, load_model
    from sam_hf.commands.sharpness.options import MeasuredExamples
    from sam_hf.sharpness import LossOracle, hessian_eigenvalues, hessian_trace, m_sharpness

    torch.set_num_threads(options.threads)
    start = time.perf_counter()
    checkpoint = find_checkpoint(str(options.comparison / "models" / name), "comparison")
    data = MeasuredExamples(
        dataset_name=None if options.train_file else "demo:rotten-tomatoes",
        train_file=options.train_file,
        max_train_samples=options.max_train_samples,
        max_examples=options.examples,
        max_seq_length=48,
    )
    examples = load_examples(data, checkpoint.config, checkpoint.kind, seed=0)
    scheme = scheme_of(checkpoint, examples.scheme)
    # Batches of similar length, which need the least padding, serve for m-sharpness too: its numbers compare these
    # models with each other, not with those of other tools
    batches, _ = batches_for(checkpoint, scheme, examples, data, options.batch_size, list)
    model = load_model(checkpoint, scheme, seed=0).to("cuda" if torch.cuda.is_available() else "cpu")
    oracle = LossOracle(model, batches, disable_tqdm=True)
    spectrum = hessian_eigenvalues(oracle, k=5, tolerance=options.tolerance)
    trace = hessian_trace(oracle, sketch=options.sketch, probes=options.probes) if options.probes else None
    groups = m_sharpness(oracle, rho=options.rho, m=options.batch_size)
    return {
        "loss": oracle.loss(),
        "eigenvalues": spectrum.values.tolist(),
        "residuals": spectrum.residuals.tolist(),
        "lambda_max": float(spectrum.values[0]),
        "lambda_ratio": spectrum.ratio(),
        "trace": None if trace is None else trace.value,
        "trace_error": None if trace is None else trace.standard_error,
        "m_sharpness": groups.mean,
        "products": spectrum.products,
        "seconds": time.perf_counter() - start,
        "environment": environment(),
    }


def reported_runs(options: argparse.Namespace) -> list[dict]:
    """Return the finished runs that are reported and whose models exist."""
    records = [json.loads(path.read_text()) | {"name": path.stem} for path in options.comparison.glob("runs/*.json")]
    return [
        record
        for record in sorted(records, key=lambda record: record["name"])
        if record["status"] == "finished"
        and record["purpose"] == "final"
        and record["label_noise"] in options.label_noise
        and record["seed"] in options.seeds
        and (not options.variants or record["variant"] in options.variants)
        and (options.comparison / "models" / record["name"]).is_dir()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--comparison", type=Path, required=True, help="output_dir of sam-hf compare --keep_models")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--train_file", help="training examples; default: the reviews of demo:rotten-tomatoes")
    parser.add_argument("--max_train_samples", type=int, help="the same value as in the runs")
    parser.add_argument("--label_noise", type=float, nargs="+", default=[0.0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", help="default: all")
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=32)
    tolerance = "residual relative to the eigenvalue, whose error is the square of it"
    parser.add_argument("--tolerance", type=float, default=0.03, help=tolerance)
    parser.add_argument("--probes", type=int, default=24, help="probes of Hutch++, for the trace; 0: no trace")
    parser.add_argument("--sketch", type=int, default=8, help="sketch vectors of Hutch++, two products each")
    parser.add_argument("--rho", type=float, default=0.01, help="radius of m-sharpness")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="threads of each job")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    result = json.loads(options.output.read_text()) if options.output.exists() else {"models": {}}
    names = ("train_file", "max_train_samples", "examples", "batch_size", "tolerance", "probes", "sketch", "rho")
    settings = {name: getattr(options, name) for name in names}
    earlier = result.setdefault("settings", settings)
    differing = [name for name in names if earlier.get(name) != settings[name]]
    if result["models"] and differing:
        parser.error(f"{options.output} holds models measured with other {', '.join(differing)}: {earlier}")
    result["settings"] = settings
    options.output.parent.mkdir(parents=True, exist_ok=True)
    records = [record for record in reported_runs(options) if record["name"] not in result["models"]]
    with multiprocessing.get_context("spawn").Pool(options.jobs, maxtasksperchild=20) as pool:
        answers = pool.imap(partial(measure, options=options), [record["name"] for record in records])
        for record, answer in zip(records, answers, strict=True):
            about = {key: record[key] for key in ("variant", "seed", "label_noise")}
            accuracy = record["evaluations"][-1].get("eval_accuracy")
            result["models"][record["name"]] = {**about, "eval_accuracy": accuracy, **answer}
            options.output.write_text(json.dumps(result, indent=1) + "\n")
            print(f"{record['name']}: lambda max {answer['lambda_max']:.4g}, {answer['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()

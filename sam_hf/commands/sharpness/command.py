"""
Measure the sharpness of one checkpoint, or of two on the same examples: the Hessian's largest eigenvalues, trace and
spectral density, m-sharpness, and the loss landscape.

    sam-hf sharpness --model sam_run --against adamw_run --dataset demo:rotten-tomatoes --out report
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...command_line.parsing import parse_arguments, run
from ...errors import UsageError

if TYPE_CHECKING:
    from ...inputs.labels import LabelScheme
    from ...sharpness import LossOracle
    from .examples import Examples
    from .models import Checkpoint
    from .options import MeasuredExamples, MeasuredModels, Measurements


@dataclass
class Subject:
    """A loaded model with its two losses: over batches of like length, and over batches in random order."""

    checkpoint: Checkpoint
    scheme: LabelScheme
    by_length: LossOracle
    shuffled: LossOracle


class Report:
    """`sharpness.json`: written by the first process, whole or not at all, after every measurement."""

    def __init__(self, folder: Path, content: dict[str, Any], writes: bool):
        self.path, self.content, self._writes = folder / "sharpness.json", content, writes
        if writes:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UsageError(f"out={folder} cannot be written to: {error.strerror}") from error

    def save(self) -> None:
        if self._writes:
            unfinished = self.path.with_suffix(".json.part")
            unfinished.write_text(json.dumps(_finite(self.content), indent=1) + "\n", encoding="utf-8")
            os.replace(unfinished, self.path)


def argument_types() -> list[type]:
    from .options import MeasuredExamples, MeasuredModels, Measurements

    return [MeasuredModels, MeasuredExamples, Measurements]


def main(argv: Sequence[str] | None = None) -> None:
    models, data, wanted = parse_arguments(argument_types(), sys.argv[1:] if argv is None else argv, __doc__ or "")

    from accelerate import PartialState

    state = PartialState(cpu=models.use_cpu)
    if state.is_main_process and find_spec("matplotlib") is None:
        print('no pictures and no page without matplotlib: pip install "sam-hf[plot]"', file=sys.stderr)
    try:
        _measure(models, data, wanted, state)
    finally:
        # A process group that is left to the interpreter's exit aborts now and then
        state.destroy_process_group()


def _measure(models: MeasuredModels, data: MeasuredExamples, wanted: Measurements, state: Any) -> None:
    from ...reports.environment import environment
    from .examples import load_examples, scheme_of
    from .measurements import measure_hessian, measure_landscape, measure_neighborhood
    from .models import check_labels, find_checkpoint

    found = [find_checkpoint(models.model, "model")] if models.model else []
    if models.against is not None:
        found.append(find_checkpoint(models.against, "against"))
    check_labels(found)
    examples = load_examples(data, found[0].config, found[0].kind, wanted.seed)
    schemes = [scheme_of(checkpoint, examples.scheme) for checkpoint in found]
    settings = _settings(data, wanted, examples, schemes[0])
    content: dict[str, Any] = {"version": 1, "settings": settings, "environment": environment(), "models": []}
    content["environment"]["device"] = str(state.device)
    report = Report(Path(wanted.out), content, state.is_main_process)
    subjects = [
        _subject(checkpoint, scheme, examples, data, wanted, state)
        for checkpoint, scheme in zip(found, schemes, strict=True)
    ]
    _announce(subjects, examples, wanted, state)
    began = time.perf_counter()
    for subject in subjects:
        oracle = subject.by_length
        row = {"name": subject.checkpoint.name, "path": subject.checkpoint.given, "parameters": oracle.dimension}
        content["models"].append(row)
        row |= {"loss": oracle.loss(), "gradient_norm": float(oracle.gradient().norm())}
        report.save()
        if wanted.hessian:
            measure_hessian(oracle, wanted, row, report.save)
        if wanted.neighborhood:
            measure_neighborhood(subject.shuffled, wanted, subjects[0].by_length.dimension, row, report.save)
        if wanted.landscape:
            measure_landscape(oracle, wanted, row, report.save)
    if wanted.landscape and len(subjects) == 2:
        _between(subjects, wanted, content, state)
    settings["seconds"] = round(time.perf_counter() - began, 1)
    report.save()
    if state.is_main_process:
        _finish(report)


def _subject(
    checkpoint: Checkpoint,
    scheme: LabelScheme,
    examples: Examples,
    data: MeasuredExamples,
    wanted: Measurements,
    state: Any,
) -> Subject:
    from ...recipes.loss import loss_function
    from ...sharpness import LossOracle
    from .examples import batches_for
    from .models import load_model

    def share(rows: list[Any]) -> list[Any]:
        return rows[state.process_index :: state.num_processes]

    compute = loss_function(scheme.problem_type, data.label_smoothing_factor)

    def loss(model: Any, batch: dict[str, Any]) -> Any:
        return compute(model(**{k: v for k, v in batch.items() if k != "labels"}), batch["labels"])

    batches = batches_for(checkpoint, scheme, examples, data, wanted.batch_size, share)
    model = load_model(checkpoint, scheme, wanted.seed).to(state.device)
    if getattr(model.config, "pad_token_id", 0) is None and checkpoint.kind == "text":
        model.config.pad_token_id = model.config.eos_token_id  # as finetuning sets it for decoders
    options: dict[str, Any] = {"loss": loss, "seed": wanted.seed, "disable_tqdm": wanted.disable_tqdm}
    by_length = LossOracle(
        model, batches[0], product=wanted.product, graph_memory=_for_graphs(model, wanted), **options
    )
    same = batches[0] is batches[1]
    return Subject(checkpoint, scheme, by_length, by_length if same else LossOracle(model, batches[1], **options))


def _for_graphs(model: Any, wanted: Measurements) -> float:
    """GiB: what weights, vectors and passes of a large model leave of 8."""
    room = 8 - 2**-30 * 4 * sum(p.numel() for p in model.parameters()) * 20
    return max(min(wanted.graph_memory, room), 0.0)


def _announce(subjects: Sequence[Subject], examples: Examples, wanted: Measurements, state: Any) -> None:
    """What is ahead, before it starts; and groups that would be larger than all examples are left out."""
    from .measurements import products_of

    count = len(examples.dataset)
    fitting = [m for m in wanted.m if m <= count // state.num_processes] or [max(count // state.num_processes, 1)]
    if state.is_main_process:
        names = " and ".join(s.checkpoint.name for s in subjects)
        print(f"Measuring {names} on {count} examples, {subjects[0].by_length.dimension:,} parameters.")
        if wanted.hessian:
            more = products_of(wanted)
            print(
                f"Hessian: about {10 + 4 * wanted.top} products for the eigenvalues"
                f"{f' and {more} for trace and density' if more else ''}, each some 3 times the cost of a gradient."
            )
        if wanted.neighborhood and fitting != wanted.m:
            print(f"m = {', '.join(map(str, fitting))}: larger groups than there are examples a process are left out.")
    wanted.m = fitting


def _between(subjects: Sequence[Subject], wanted: Measurements, content: dict[str, Any], state: Any) -> None:
    """The loss on the line between the models, where they are of one architecture with one order of classes."""
    import torch

    from ...sharpness import loss_between

    first, second = (subject.by_length.model for subject in subjects)
    shapes = [{name: p.shape for name, p in model.named_parameters()} for model in (first, second)]
    if shapes[0] != shapes[1] or subjects[0].scheme.names != subjects[1].scheme.names:
        if state.is_main_process:
            why = "architectures" if shapes[0] != shapes[1] else "orders of the labels"
            print(f"No line between the models: they have different {why}.")
        return
    t = torch.linspace(-0.2, 1.2, wanted.between_points, dtype=torch.float64)
    losses = loss_between(subjects[0].by_length, second.state_dict(), t)
    content["between"] = {"t": t.tolist(), "loss": losses.tolist()}


def _settings(data: MeasuredExamples, wanted: Measurements, examples: Examples, scheme: LabelScheme) -> dict[str, Any]:
    from dataclasses import asdict

    from ...inputs.labels import REGRESSION, SINGLE_LABEL

    names = {SINGLE_LABEL: "cross-entropy", REGRESSION: "mean squared error"}
    files = {"train": data.train_file or data.train_dir, "test": data.test_file or data.test_dir}
    files["validation"] = data.validation_file or data.validation_dir
    return {
        "dataset": data.dataset_name or files.get(data.split),
        "split": data.split,
        "examples": len(examples.dataset),
        "max_examples": data.max_examples,
        "batch_size": wanted.batch_size,
        "seed": wanted.seed,
        "loss": names.get(scheme.problem_type, "binary cross-entropy"),
        **({"label_smoothing_factor": data.label_smoothing_factor} if data.label_smoothing_factor else {}),
        **({"label_noise": data.label_noise, "labels_replaced": examples.replaced} if data.label_noise else {}),
        **({"max_train_samples": data.max_train_samples} if data.max_train_samples else {}),
        "measurements": asdict(wanted),
        "command": "sam-hf sharpness",
    }


def _finish(report: Report) -> None:
    print("\n".join(["", *_table(report.content["models"]), f"numbers written to {report.path}"]))
    if find_spec("matplotlib") is None:
        print('pictures and page need matplotlib: pip install "sam-hf[plot]"')
        return
    from .page import draw_pictures, write_page

    content = _finite(report.content)
    page = write_page(content, draw_pictures(content, report.path.parent), report.path.parent / "sharpness.html")
    print(f"pictures beside it, all together in {page}")


def _table(models: Sequence[dict[str, Any]]) -> list[str]:
    """The main figures, a column a model."""

    def rows_of(model: dict[str, Any]) -> dict[str, str]:
        hessian, near = model.get("hessian", {}), model.get("neighborhood", {})
        rows = {"loss L(w)": model["loss"], "gradient norm": model["gradient_norm"]}
        if hessian:
            rows |= {"λmax": hessian["eigenvalues"][0], "λ1/λ5": hessian.get("lambda_ratio")}
            rows |= {"trace": hessian.get("trace")}
        for entry in near.get("m_sharpness", ()):
            rows[f"m-sharpness, m={entry['m']}, p={entry['p']}"] = entry["mean"]
        shown = {key: f"{value:.4g}" for key, value in rows.items() if value is not None}
        if "trace" in shown:
            shown["trace"] += f" ± {hessian['trace_error']:.2g}"
        return shown

    columns = [rows_of(model) for model in models]
    lines = [["", *(model["name"] for model in models)]]
    lines += [[key, *(column.get(key, "-") for column in columns)] for key in columns[0]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _finite(value: Any) -> Any:
    """JSON knows neither infinity nor NaN: `null` stands for them."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


if __name__ == "__main__":
    run(main)

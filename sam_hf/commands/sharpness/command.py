"""
Measure the sharpness of one checkpoint, or of two on the same examples: the largest eigenvalues, the trace and the
spectral density of the Hessian, m-sharpness, and the loss landscape.

    sam-hf sharpness --model sam_run --against adamw_run --dataset demo:rotten-tomatoes --out report
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ...command_line import parse_arguments, run
from ...errors import UsageError
from ...inputs.labels import REGRESSION, SINGLE_LABEL, LabelScheme, describe_columns
from ...recipes.loss import loss_function
from ...reports import page
from ...reports.environment import environment
from ...sharpness import LossOracle, loss_between
from .examples import Examples, batches_for, load_examples, scheme_of
from .measurements import measure_hessian, measure_landscape, measure_neighborhood, products_besides_eigenvalues
from .models import Checkpoint, check_labels, find_checkpoint, load_model
from .options import ARGUMENT_TYPES, MeasuredExamples, MeasuredModels, Measurements
from .page import draw_pictures, glance, models_by_name, write_page


@dataclass
class LoadedModel:
    """A model with its loss over batches of similar length, and its loss over batches in random order."""

    checkpoint: Checkpoint
    scheme: LabelScheme
    by_length: LossOracle
    shuffled: LossOracle


class ResultFile:
    """The content of `sharpness.json`. The first process writes the whole file after every measurement."""

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


def main(argv: Sequence[str] | None = None) -> None:
    models, data, options = parse_arguments(ARGUMENT_TYPES, argv, __doc__)
    state = PartialState(cpu=models.use_cpu)
    if state.is_main_process and not page.can_draw():
        print(f"there will be no page and no pictures: {page.PLOTS_ARE_MISSING}", file=sys.stderr)
    try:
        _measure(models, data, options, state)
    finally:
        # A process group that is left to the interpreter's exit sometimes aborts
        state.destroy_process_group()


def _measure(models: MeasuredModels, data: MeasuredExamples, options: Measurements, state: PartialState) -> None:
    given = {"model": models.model, "against": models.against}
    checkpoints = [find_checkpoint(path, option) for option, path in given.items() if path is not None]
    check_labels(checkpoints)
    examples = load_examples(data, checkpoints[0].config, checkpoints[0].kind, options.seed)
    schemes = [scheme_of(checkpoint, examples.scheme) for checkpoint in checkpoints]
    if state.is_main_process:
        in_order_of_outputs = replace(schemes[0], column=examples.scheme.column)
        print(describe_columns(checkpoints[0].kind, examples.columns, in_order_of_outputs))
    settings = _settings(data, options, examples, schemes[0])
    content: dict[str, Any] = {"version": 1, "settings": settings, "environment": environment(), "models": []}
    content["environment"]["device"] = str(state.device)
    result = ResultFile(Path(options.out), content, state.is_main_process)
    loaded = [
        _load(checkpoint, scheme, examples, data, options, state)
        for checkpoint, scheme in zip(checkpoints, schemes, strict=True)
    ]
    # Groups that are larger than the examples of a process are left out
    per_process = max(len(examples.dataset) // state.num_processes, 1)
    possible_m = [m for m in options.m if m <= per_process] or [per_process]
    if state.is_main_process:
        _announce(loaded, examples, options, possible_m)
    options.m = possible_m
    start = time.perf_counter()
    for model in loaded:
        oracle = model.by_length
        row = {"name": model.checkpoint.name, "path": model.checkpoint.given, "parameters": oracle.dimension}
        content["models"].append(row)
        loss = oracle.loss()
        if not math.isfinite(loss):
            raise UsageError(f"the loss of {model.checkpoint.given} on these examples is {loss}: it must be finite")
        row |= {"loss": loss, "gradient_norm": float(oracle.gradient().norm())}
        result.save()
        if options.hessian:
            measure_hessian(oracle, options, row, result.save)
        if options.neighborhood:
            measure_neighborhood(model.shuffled, options, loaded[0].by_length.dimension, row, result.save)
        if options.landscape:
            measure_landscape(oracle, options, row, result.save)
    if options.landscape and len(loaded) == 2:
        content |= _measure_between(loaded[0], loaded[1], options.between_points, state)
    settings["seconds"] = round(time.perf_counter() - start, 1)
    result.save()
    if state.is_main_process:
        _show(result)


def _load(
    checkpoint: Checkpoint,
    scheme: LabelScheme,
    examples: Examples,
    data: MeasuredExamples,
    options: Measurements,
    state: PartialState,
) -> LoadedModel:
    def of_this_process(rows: list[Any]) -> list[Any]:
        return rows[state.process_index :: state.num_processes]

    compute = loss_function(scheme.problem_type, data.label_smoothing_factor)

    def loss(model: Any, batch: dict[str, Any]) -> Any:
        return compute(model(**{k: v for k, v in batch.items() if k != "labels"}), batch["labels"])

    by_length, shuffled = batches_for(checkpoint, scheme, examples, data, options.batch_size, of_this_process)
    model = load_model(checkpoint, scheme, options.seed).to(state.device)
    if getattr(model.config, "pad_token_id", 0) is None and checkpoint.kind == "text":
        model.config.pad_token_id = model.config.eos_token_id  # as finetuning sets it for decoders
    common: dict[str, Any] = {"loss": loss, "seed": options.seed, "disable_tqdm": options.disable_tqdm}
    # The weights, vectors and passes of a large model must fit into 8 GiB together with the graphs
    room = 8 - 2**-30 * 4 * sum(p.numel() for p in model.parameters()) * 20
    graph_memory = max(min(options.graph_memory, room), 0.0)
    oracle = LossOracle(model, by_length, product=options.product, graph_memory=graph_memory, **common)
    same_batches = shuffled is by_length
    return LoadedModel(checkpoint, scheme, oracle, oracle if same_batches else LossOracle(model, shuffled, **common))


def _announce(loaded: Sequence[LoadedModel], examples: Examples, options: Measurements, possible_m: list[int]) -> None:
    names = " and ".join(model.checkpoint.name for model in loaded)
    parameters = loaded[0].by_length.dimension
    print(f"Measuring {names} on {len(examples.dataset)} examples, {parameters:,} parameters.")
    if options.hessian:
        others = products_besides_eigenvalues(options)
        print(
            f"Hessian: about {10 + 4 * options.top} products for the eigenvalues"
            f"{f' and {others} for trace and density' if others else ''}. Each costs about as much as 3 gradients."
        )
    if options.neighborhood and possible_m != options.m:
        used = ", ".join(map(str, possible_m))
        print(f"m = {used}: groups that are larger than the examples of a process are left out.")


def _measure_between(first: LoadedModel, second: LoadedModel, points: int, state: PartialState) -> dict[str, Any]:
    """Return the loss on the line between two models of the same architecture with the same order of classes."""
    shapes = [{name: p.shape for name, p in m.by_length.model.named_parameters()} for m in (first, second)]
    if shapes[0] != shapes[1] or first.scheme.names != second.scheme.names:
        if state.is_main_process:
            difference = "architectures" if shapes[0] != shapes[1] else "orders of the labels"
            print(f"The line between the models is not measured: they have different {difference}.")
        return {}
    t = torch.linspace(-0.2, 1.2, points, dtype=torch.float64)
    losses = loss_between(first.by_length, second.by_length.model.state_dict(), t)
    return {"between": {"t": t.tolist(), "loss": losses.tolist()}}


def _settings(
    data: MeasuredExamples, options: Measurements, examples: Examples, scheme: LabelScheme
) -> dict[str, Any]:
    files = {"train": data.train_file or data.train_dir, "test": data.test_file or data.test_dir}
    files["validation"] = data.validation_file or data.validation_dir
    losses = {SINGLE_LABEL: "cross-entropy", REGRESSION: "mean squared error"}
    return {
        "dataset": data.dataset_name or files.get(data.split),
        "split": data.split,
        "examples": len(examples.dataset),
        "max_examples": data.max_examples,
        "batch_size": options.batch_size,
        "seed": options.seed,
        "loss": losses.get(scheme.problem_type, "binary cross-entropy"),
        **({"label_smoothing_factor": data.label_smoothing_factor} if data.label_smoothing_factor else {}),
        **({"label_noise": data.label_noise, "labels_replaced": examples.replaced} if data.label_noise else {}),
        **({"max_train_samples": data.max_train_samples} if data.max_train_samples else {}),
        "measurements": asdict(options),
        "command": "sam-hf sharpness",
    }


def _show(result: ResultFile) -> None:
    """Print the main numbers, and write the pictures and the page."""
    content = _finite(result.content)
    print(f"\n{page.aligned(glance(models_by_name(content), ('2', 'inf')))}")
    print(f"numbers written to {result.path}")
    if page.can_draw():
        folder = result.path.parent
        written = write_page(content, draw_pictures(content, folder), folder / "sharpness.html")
        print(f"pictures written to {folder}, and a page with all of them to {written}")
    else:
        print(f"page and pictures not written: {page.PLOTS_ARE_MISSING}")


def _finite(value: Any) -> Any:
    """Replace infinity and NaN, which JSON does not have, by `None`."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


if __name__ == "__main__":
    run(main)

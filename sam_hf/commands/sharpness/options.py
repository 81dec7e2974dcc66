"""The options of `sam-hf sharpness`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

from ...errors import UsageError
from ...inputs.labels import PROBLEM_TYPES
from ...inputs.options import option
from ...sharpness.attention import PRODUCTS


def _at_least(arguments: Any, least: float, *names: str) -> None:
    for name in names:
        given = getattr(arguments, name)
        for value in given if isinstance(given, list) else [given]:
            if value is not None and not least <= value < float("inf"):
                raise UsageError(f"{name}={value} is not allowed: it must be at least {least:g}")


@dataclass
class MeasuredModels:
    help_title: ClassVar[str] = "Models"

    model: str | None = option(None, "Hub name, folder (also of a LoRA adapter), or demo:NAME of the checkpoint.")
    against: str | None = option(None, "A second checkpoint, measured on the same examples and directions.")
    use_cpu: bool = option(False, "Measure on the CPU even if there is a GPU.")

    def __post_init__(self):
        if self.model is None:
            raise UsageError("model is missing: give a Hub name, a folder, or demo:NAME")


@dataclass
class MeasuredExamples:
    help_title: ClassVar[str] = "Examples"

    dataset_name: str | None = option(
        None, "Hub data set, folder saved by datasets, or demo:NAME.", aliases=["--dataset"]
    )
    dataset_config_name: str | None = option(None, "Configuration of the Hub data set.")
    train_file: str | None = option(None, "Training examples: csv, json, jsonl or parquet.")
    validation_file: str | None = option(None, "Validation examples.")
    test_file: str | None = option(None, "Test examples, with labels.")
    train_dir: str | None = option(None, "Training images: one folder per class, with images at any depth in it.")
    validation_dir: str | None = option(None, "Validation images, in folders of the same classes.")
    test_dir: str | None = option(None, "Test images, in folders of the same classes.")
    split: str = option("train", "The split to measure on. Training minimised the loss of the train split.")
    max_examples: int = option(256, "Measure on a random sample of at most this many examples.")
    max_train_samples: int | None = option(None, "As in the training run: measure on the examples that it trained on.")
    label_noise: float = option(0.0, "As in the training run: measure with the labels that it trained on.")
    label_noise_seed: int = option(42, "The seed (or data_seed) of the training run.")
    label_smoothing_factor: float = option(0.0, "Label smoothing of the measured loss.")
    label_column: str | None = option(None, "Column with the labels. Default: label or labels.")
    problem_type: str | None = option(None, "Default: the type that the checkpoint has.", choices=list(PROBLEM_TYPES))
    drop_unlabelled: bool = option(False, "Leave out examples without a label. Default: refuse them.")
    text_column: str | None = option(None, "Column with the text. Default: as in sam-hf text.")
    text_pair_column: str | None = option(None, "Column with the second text of a pair.")
    max_seq_length: int = option(128, "Longer texts are cut to this many tokens.")
    image_column: str | None = option(None, "Column with the images. Default: the column that holds images, or image.")
    image_size: int | None = option(None, "Height and width of the model's input. Default: the checkpoint's.")

    def __post_init__(self):
        _at_least(self, 1, "max_examples", "max_train_samples", "max_seq_length", "image_size")
        for name in ("label_noise", "label_smoothing_factor"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)} is not allowed: it must be at least 0 and below 1")
        for name in ("max_train_samples", "label_noise"):
            if getattr(self, name) and self.split != "train":
                raise UsageError(f"{name} is for the training examples: it cannot be given with split={self.split}")


@dataclass
class Measurements:
    help_title: ClassVar[str] = "Measurements (all three if none is chosen)"

    hessian: bool = option(False, "Largest eigenvalues, trace and spectral density of the Hessian.")
    neighborhood: bool = option(False, "m-sharpness, adaptive sharpness and random directions, for p = 2 and inf.")
    landscape: bool = option(False, "The loss along a line, over a plane, and between the two models.")
    out: str = option("sharpness", "Folder for sharpness.json, the pictures and the page.")
    seed: int = option(0, "Seed of the sample of examples, the probes and the directions.")
    batch_size: int = option(32, "Examples per pass and process.")
    disable_tqdm: bool = option(False, "Show no progress bars.")
    top: int = option(5, "Number of eigenvalues.")
    tolerance: float = option(
        0.03, "Stop when ‖Hv - λv‖ is below this share of each λ. The relative error of λ is about its square."
    )
    max_products: int = option(200, "Use at most this many products for the eigenvalues, converged or not.")
    max_vectors: int | None = option(
        None,
        "Vectors of the weights' size that are kept at a time. Default: what fits into 4 GiB, top + 3 to 40.",
    )
    graph_memory: float = option(
        4.0, "GiB for graphs that are kept between products, which makes products a third cheaper; 0 keeps none."
    )
    product: str = option("auto", "How Hessian-vector products are computed.", choices=list(PRODUCTS))
    trace_sketch: int = option(4, "Columns of the sketch for the trace, with two products per column.")
    trace_probes: int = option(8, "Random probes of the trace, with one product per probe; 0: no trace.")
    density_probes: int = option(2, "Random probes of the spectral density; 0: no density.")
    density_steps: int = option(20, "Products per probe of the spectral density.")
    m: list[int] = field(
        default_factory=lambda: [8, 32, 128], metadata={"help": "Examples that share a worst direction."}
    )
    rho: float = option(0.05, "Radius of the neighbourhood in the 2-norm.")
    rho_inf: float | None = option(
        None, "Radius in the inf-norm. Default: rho / sqrt(parameters), a cube inside the ball."
    )
    adaptive_rho: float = option(0.5, "Radius in units of each weight. The inf-norm divides it by sqrt(parameters).")
    directions: int = option(10, "Number of random directions.")
    landscape_radius: float = option(1.0, "Half the length of the line and plane, in units of each filter's norm.")
    line_points: int = option(21, "Points on the line.")
    surface_points: int = option(11, "Points on each axis of the plane; 0: no plane.")
    between_points: int = option(15, "Points on the line between the models, which extends a little beyond both.")

    def __post_init__(self):
        _at_least(self, 1, "batch_size", "top", "m", "density_steps", "directions", "max_products")
        _at_least(self, 0, "trace_sketch", "density_probes", "surface_points", "seed", "graph_memory")
        _at_least(self, 0, "rho", "rho_inf", "adaptive_rho")
        _at_least(self, 2, "line_points", "between_points")
        for name in ("tolerance", "landscape_radius"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name}={getattr(self, name)} is not allowed: it must be above 0")
        if self.max_vectors is not None and self.max_vectors < self.top + 2:
            raise UsageError(f"max_vectors={self.max_vectors} is not allowed: it must be at least top + 2")
        if self.trace_probes < 0 or self.trace_probes == 1:
            raise UsageError(
                f"trace_probes={self.trace_probes} is not allowed: 0, or at least 2 for an error estimate"
            )
        if self.max_products < self.top:
            raise UsageError(f"max_products={self.max_products} is not allowed: it must be at least top")
        if not (self.hessian or self.neighborhood or self.landscape):
            self.hessian = self.neighborhood = self.landscape = True


ARGUMENT_TYPES = [MeasuredModels, MeasuredExamples, Measurements]

"""
Finetune a pretrained checkpoint on images with Sharpness-Aware Minimization. Every checkpoint that
AutoModelForImageClassification loads will do, those of timm included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from ..arguments.fields import SAMTrainingArguments
from ..command_line import parse_arguments
from ..errors import BrokenImageError, UsageError
from ..inputs.checkpoints import from_checkpoint, label_arguments
from ..inputs.labels import say_columns
from ..inputs.options import DataArguments, ModelArguments, option
from ..inputs.splits import load_labelled
from ..trainer.mixin import SAMTrainer
from .best_metric import METRICS, check_best_metric
from .card import card_arguments
from .loss import loss_function
from .model_options import StateLayout, to_channels_last, with_lora
from .run import LabelNoise, label_columns, metrics_function, run_recipe, start_run


@dataclass
class ImageArguments(DataArguments):
    train_dir: str | None = option(None, "Training images: one folder per class, with images at any depth in it.")
    validation_dir: str | None = option(None, "Validation images, in folders of the same classes.")
    test_dir: str | None = option(None, "Images to predict, with or without class folders.")
    image_column: str | None = option(
        None, "Column with encoded images or file names. Default: the only column of images, or image."
    )
    image_size: int | None = option(None, "Height and width of the model's input. Default: the checkpoint's.")
    crop_scale_min: float = option(0.08, "Smallest share of the area in a random crop; 1 takes the centre crop.")
    horizontal_flip: float = option(0.5, "Probability of mirroring a training image.")
    channels_last: bool = option(False, "Channels-last memory layout, in which convolutions can be faster.")

    def __post_init__(self):
        super().__post_init__()
        if self.image_size is not None and self.image_size < 1:
            raise UsageError(f"image_size={self.image_size} is not allowed: it must be at least 1")
        if not 0 < self.crop_scale_min <= 1:
            raise UsageError(f"crop_scale_min={self.crop_scale_min} is not allowed: it must be above 0, at most 1")
        if not 0 <= self.horizontal_flip <= 1:
            raise UsageError(f"horizontal_flip={self.horizontal_flip} is not allowed: it must be from 0 to 1")


ARGUMENT_TYPES: list[type] = [ImageArguments, ModelArguments, SAMTrainingArguments]


def main(argv: Sequence[str] | None = None) -> None:
    data, model_arguments, args = parse_arguments(ARGUMENT_TYPES, argv, __doc__)

    # pillow is an optional dependency, and --help works without it
    from ..inputs.image_format import ImageFormat
    from ..inputs.images import ImageTransform, check_images

    args.remove_unused_columns = False  # ImageTransform needs the image column, which no model takes as an argument
    checkpoint, weights, start = start_run(args, model_arguments, data)
    encoded, scheme, replaced, columns = load_images(data, args, checkpoint)
    say_columns(args, "image", [next(iter(columns.values()))], scheme)
    check_best_metric(args, METRICS[scheme.problem_type])

    processor = from_checkpoint(AutoImageProcessor, checkpoint)
    model = from_checkpoint(AutoModelForImageClassification, weights, **label_arguments(scheme.names))
    image_format = ImageFormat.of(processor, model.config, data.image_size)
    if data.image_size is not None:
        check_image_size(model, image_format)
        image_format.write_to(processor, model.config)
    model = with_lora(model, model_arguments)
    augmentation = {"crop_scale_min": data.crop_scale_min, "horizontal_flip": data.horizontal_flip}
    splits = {
        split: dataset.with_transform(
            ImageTransform(image_format, columns[split], "labels", train=split == "train", **augmentation)
        )
        for split, dataset in encoded.items()
    }

    trainer = SAMTrainer(
        model=to_channels_last(model, args) if data.channels_last else model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        compute_loss_func=loss_function(scheme.problem_type, args.label_smoothing_factor),
        compute_metrics=metrics_function(scheme.problem_type),
        callbacks=[StateLayout()],
    )
    try:
        run_recipe(
            trainer,
            start,
            card_arguments(data, model_arguments, "image-classification"),
            save_model=model_arguments.save_final_model,
            label_noise=LabelNoise(data.label_noise, replaced),
            predict_dataset=splits.get("test"),
            prediction_columns=partial(label_columns, scheme=scheme),
        )
    except BrokenImageError:
        # The file's header was sound. Only decoding every image shows which row it is
        for split in encoded:
            check_images(encoded[split], columns[split], split, decoded=True)
        raise


def load_images(data: ImageArguments, args, checkpoint: str):
    """Return splits with encoded and checked images, label scheme, number of labels replaced, and image columns."""
    from ..inputs.images import check_images, encoded_images, find_image_column

    folders = {"train": data.train_dir, "validation": data.validation_dir, "test": data.test_dir}
    splits, scheme, replaced = load_labelled(data, args, checkpoint, folders)
    if scheme.problem_type != "single_label_classification":
        raise UsageError(f"the labels of images must be classes: these labels make a {scheme.problem_type}")
    columns = {split: find_image_column(splits[split], data.image_column) for split in splits}
    for split, column in columns.items():
        splits[split] = encoded_images(splits[split], column)
        check_images(splits[split], column, split)
    return splits, scheme, replaced, columns


def check_image_size(model, image_format) -> None:
    """Refuse a size that the checkpoint cannot take, most often because of its position embeddings."""
    try:
        with torch.no_grad():
            model(torch.zeros(1, image_format.channels, *image_format.crop, dtype=model.dtype))
    except (ValueError, RuntimeError, AssertionError) as error:
        height, width = image_format.crop
        raise UsageError(f"image_size: the checkpoint does not take {height}×{width}: {error}") from error

"""
Finetune a pretrained checkpoint on images with Sharpness-Aware Minimization: any that AutoModelForImageClassification
loads, timm's included.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

from ..command_line.parsing import parse_arguments, run
from ..errors import UsageError
from ..inputs.options import DataArguments, ModelArguments, option


@dataclass
class ImageArguments(DataArguments):
    train_dir: str | None = option(None, "Training images: a folder that holds one folder a class.")
    validation_dir: str | None = option(None, "Validation images, in class folders.")
    test_dir: str | None = option(None, "Images to predict, in class folders or in none.")
    image_column: str | None = option(None, "Column with the images. Default: the one that holds some, or image.")
    image_size: int | None = option(None, "Height and width of the model's input. Default: the checkpoint's.")
    crop_scale_min: float = option(0.08, "Least share of the area in a random crop; 1 takes the centre crop.")
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


def argument_types() -> list[type]:
    from ..arguments.fields import SAMTrainingArguments

    return [ImageArguments, ModelArguments, SAMTrainingArguments]


def main(argv: list[str] | None = None) -> None:
    data, model_arguments, args = parse_arguments(argument_types(), sys.argv[1:] if argv is None else argv, __doc__)

    from transformers import AutoImageProcessor, set_seed

    from ..errors import BrokenImageError
    from ..inputs.checkpoints import from_checkpoint, model_path, starting_point
    from ..inputs.images import check_images
    from ..trainer.mixin import SAMTrainer
    from .card import card_arguments
    from .channels_last import StateLayout, to_channels_last
    from .loss import loss_function
    from .run import carry_out, find_checkpoint, metrics_function, write_labels

    set_seed(args.seed)
    args.remove_unused_columns = False  # the transform needs the image column, which no model's forward names
    resume_from = find_checkpoint(args, model_arguments.overwrite_output_dir)
    path = model_path(model_arguments.model_name_or_path)
    encoded, scheme, replaced, columns = load_images(data, args, path)

    processor = from_checkpoint(AutoImageProcessor, path)
    model, image_format = load_model(
        starting_point(path, resume_from), scheme, processor, data.image_size, model_arguments
    )
    if data.channels_last:
        model = to_channels_last(model, args)
    splits = {split: as_tensors(encoded[split], columns[split], image_format, data, split) for split in encoded}

    trainer = SAMTrainer(
        model=model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        compute_loss_func=loss_function(scheme.problem_type, args.label_smoothing_factor),
        compute_metrics=metrics_function(scheme.problem_type),
        callbacks=[StateLayout()],
    )
    card = card_arguments(data, model_arguments, "image-classification")
    try:
        carry_out(
            trainer,
            resume_from,
            card,
            splits.get("test"),
            partial(write_labels, scheme=scheme),
            noise=data.label_noise,
            replaced=replaced,
            save_model=model_arguments.save_final_model,
        )
    except BrokenImageError:
        for split in encoded:  # the header was sound; which row it is, only decoding every image tells
            check_images(encoded[split], columns[split], split, decoded=True)
        raise


def load_images(data: ImageArguments, args, path: str):
    """The splits with their images encoded and checked, the label scheme, labels replaced, and the image columns."""
    from ..inputs.images import check_image_folder, check_images, encoded_images, find_image_column
    from ..inputs.splits import load_labelled

    folders = {"train": data.train_dir, "validation": data.validation_dir, "test": data.test_dir}
    for split, folder in folders.items():
        if folder is not None:
            check_image_folder(folder, needs_classes=split != "test")
    splits, scheme, replaced = load_labelled(data, args, path, folders)
    if scheme.problem_type != "single_label_classification":
        raise UsageError(f"labels of images must be classes: these make a {scheme.problem_type}")
    columns = {split: find_image_column(splits[split], data.image_column) for split in splits}
    for split, column in columns.items():
        splits[split] = encoded_images(splits[split], column)
        check_images(splits[split], column, split)
    return splits, scheme, replaced, columns


def load_model(path: str, scheme, processor, image_size: int | None, model_arguments: ModelArguments):
    """The checkpoint at `path` with an output for each class, and with adapters on request; and what it takes in."""
    from transformers import AutoModelForImageClassification

    from ..inputs.checkpoints import from_checkpoint, outputs_named
    from ..inputs.image_format import ImageFormat
    from .lora import head_name, with_lora

    model = from_checkpoint(AutoModelForImageClassification, path, **outputs_named(scheme.names))
    image_format = ImageFormat.of(processor, model.config, image_size)
    if image_size is not None:
        check_image_size(model, image_format)
        image_format.write_to(processor, model.config)
    model = with_lora(model, model_arguments, head=head_name(model) if model_arguments.lora_r else None)
    return model, image_format


def check_image_size(model, image_format) -> None:
    """Refuse a size that the checkpoint cannot take, most often for its position embeddings."""
    import torch

    try:
        with torch.no_grad():
            model(torch.zeros(1, image_format.channels, *image_format.crop, dtype=model.dtype))
    except (ValueError, RuntimeError, AssertionError) as error:
        height, width = image_format.crop
        raise UsageError(f"image_size: the checkpoint does not take {height}×{width}: {error}") from error


def as_tensors(dataset, column: str, image_format, data: ImageArguments, split: str):
    """`dataset` with its images decoded when they are asked for, those of training in random crops and mirrored."""
    from ..inputs.images import ImageTransform

    transform = ImageTransform(
        image_format,
        column,
        label_column="labels",
        train=split == "train",
        crop_scale_min=data.crop_scale_min,
        horizontal_flip=data.horizontal_flip,
    )
    return dataset.with_transform(transform)


if __name__ == "__main__":
    run(main)

"""
Finetune a pretrained checkpoint on images with Sharpness-Aware Minimization: any that AutoModelForImageClassification
loads, timm's included.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

from sam_hf.commands.arguments import DataArguments, ModelArguments, option
from sam_hf.commands.cli import UsageError, parse_arguments, run


@dataclass
class ImageArguments(DataArguments):
    train_dir: str | None = option(None, "Training images: a folder that holds one folder a class.")
    validation_dir: str | None = option(None, "Validation images, in class folders.")
    test_dir: str | None = option(None, "Images to predict, in class folders.")
    image_column: str = option("image", "Column with the images.")
    image_size: int | None = option(None, "Height and width of the model's input. Default: the checkpoint's.")
    crop_scale_min: float = option(0.08, "Least share of the area in a random crop; 1 takes the centre crop.")
    horizontal_flip: float = option(0.5, "Probability of mirroring a training image.")


def main(argv: list[str] | None = None) -> None:
    from sam_hf import SAMTrainingArguments

    data, model_arguments, args = parse_arguments(
        [ImageArguments, ModelArguments, SAMTrainingArguments], sys.argv[1:] if argv is None else argv, __doc__
    )

    from transformers import AutoImageProcessor, AutoModelForImageClassification, set_seed

    from sam_hf import SAMTrainer
    from sam_hf.commands.data import load_labelled
    from sam_hf.commands.images import ImageFormat, ImageTransform, check_class_folders, check_images, encoded_images
    from sam_hf.commands.lora import with_lora
    from sam_hf.commands.loss import loss_function
    from sam_hf.commands.models import from_checkpoint, model_path
    from sam_hf.commands.run import carry_out, find_checkpoint, metrics_function

    set_seed(args.seed)
    args.remove_unused_columns = False  # the transform needs the image column, which no model's forward names
    resume_from = find_checkpoint(args, model_arguments.overwrite_output_dir)
    path = model_path(model_arguments.model_name_or_path)
    folders = {"train": data.train_dir, "validation": data.validation_dir, "test": data.test_dir}
    for folder in filter(None, folders.values()):
        check_class_folders(folder)
    splits, scheme, replaced = load_labelled(data, args, path, folders)
    if scheme.problem_type != "single_label_classification":
        raise UsageError(f"labels of images must be classes: these make a {scheme.problem_type}")
    for split in splits:
        splits[split] = encoded_images(splits[split], data.image_column)
        check_images(splits[split], data.image_column, split)

    processor = from_checkpoint(AutoImageProcessor, path)
    model = from_checkpoint(
        AutoModelForImageClassification,
        path,
        num_labels=len(scheme.names),
        id2label=dict(enumerate(scheme.names)),
        label2id={name: i for i, name in enumerate(scheme.names)},
        ignore_mismatched_sizes=True,
    )
    image_format = ImageFormat.of(processor, model.config, data.image_size)
    model = with_lora(model, model_arguments, head=head_name(model))
    for split in splits:
        transform = ImageTransform(
            image_format,
            data.image_column,
            label_column="labels",
            train=split == "train",
            crop_scale_min=data.crop_scale_min,
            horizontal_flip=data.horizontal_flip,
        )
        splits[split] = splits[split].with_transform(transform)

    trainer = SAMTrainer(
        model=model,
        args=args,
        train_dataset=splits.get("train"),
        eval_dataset=splits.get("validation"),
        processing_class=processor,
        compute_loss_func=loss_function(scheme.problem_type, args.label_smoothing_factor),
        compute_metrics=metrics_function(scheme.problem_type),
    )
    carry_out(trainer, scheme, resume_from, replaced, data.label_noise, splits.get("test"))


def head_name(model) -> str:
    """The module that gives the logits: the last linear one with an output a class."""
    return [n for n, module in model.named_modules() if getattr(module, "out_features", 0) == model.config.num_labels][
        -1
    ]


if __name__ == "__main__":
    run(main)

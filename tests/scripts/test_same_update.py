"""Accumulating 4 micro-batches of 8 trains exactly like one batch of 32, with SAM and with plain training."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from sam_hf import SAMTrainer, SAMTrainingArguments
from sam_hf.recipes.loss import loss_function

METHODS = ["none", "sam"]


def largest_difference(first: dict, second: dict) -> float:
    assert first.keys() == second.keys()
    return max((first[name].double() - second[name].double()).abs().max().item() for name in first)


def trained(main, folder, method: str, batch: int, accumulation: int, *options) -> dict:
    # SGD, because Adam's first steps are the sign of the gradient, which rounding can change
    shared = (
        "--do_train --max_steps 4 --optim sgd --learning_rate .1 --lr_scheduler_type constant --sam_rho .1 "
        f"--per_device_train_batch_size {batch} --gradient_accumulation_steps {accumulation} --sam_method {method} "
        "--report_to none --disable_tqdm true --use_cpu true --save_strategy no"
    )
    main([*map(str, options), *shared.split(), "--output_dir", str(folder)])
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("method", METHODS)
def test_text(finetune_text, bert, text_files, tmp_path, method):
    # 36 examples: an update of 32 and a short one of 4, twice
    options = ["--model_name_or_path", bert, "--train_file", text_files["train"]]
    accumulated = trained(finetune_text.main, tmp_path / "4x8", method, 8, 4, *options)
    at_once = trained(finetune_text.main, tmp_path / "1x32", method, 32, 1, *options)
    assert largest_difference(accumulated, at_once) < 2e-6


@pytest.mark.parametrize("method", METHODS)
def test_ragged_micro_batch(finetune_text, bert, text_files, tmp_path, method):
    # 30 examples: micro-batches of 8, 8, 8 and 6 in one update
    options = ["--model_name_or_path", bert, "--train_file", text_files["train"], "--max_train_samples", 30]
    accumulated = trained(finetune_text.main, tmp_path / "4x8", method, 8, 4, *options)
    at_once = trained(finetune_text.main, tmp_path / "1x32", method, 32, 1, *options)
    assert largest_difference(accumulated, at_once) < 2e-6


def test_sam_is_not_plain_training(finetune_text, bert, text_files, tmp_path):
    options = ["--model_name_or_path", bert, "--train_file", text_files["train"]]
    plain, sam = (trained(finetune_text.main, tmp_path / method, method, 32, 1, *options) for method in METHODS)
    assert largest_difference(plain, sam) > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_images(finetune_image, vit, image_folder, tmp_path, method):
    # 13 examples: 4 + 4 + 4, then 1
    options = ["--model_name_or_path", vit, "--train_dir", image_folder]
    options += ["--crop_scale_min", 1, "--horizontal_flip", 0]
    accumulated = trained(finetune_image.main, tmp_path / "3x4", method, 4, 3, *options)
    at_once = trained(finetune_image.main, tmp_path / "1x12", method, 12, 1, *options)
    assert largest_difference(accumulated, at_once) < 2e-6


def double_precision(bert, folder, method: str, batch: int, accumulation: int, loss) -> dict:
    from transformers import AutoModelForSequenceClassification, set_seed

    set_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=3).double()
    generator = torch.Generator().manual_seed(1)
    examples = [
        {"input_ids": torch.randint(5, 17, (6,), generator=generator), "labels": i % 3, "attention_mask": [1] * 6}
        for i in range(46)
    ]
    args = SAMTrainingArguments(
        output_dir=str(folder),
        sam_method=method,
        sam_rho=0.1,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=4,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        save_strategy="no",
    )
    SAMTrainer(model=model, args=args, train_dataset=examples, compute_loss_func=loss).train()
    return model.state_dict()


@pytest.mark.parametrize("method", METHODS)
def test_double_precision(bert, tmp_path, method):
    # 46 examples: a window of 32, and a short one of 8 and 6
    loss = loss_function("single_label_classification")
    accumulated = double_precision(bert, tmp_path, method, 8, 4, loss)
    at_once = double_precision(bert, tmp_path, method, 32, 1, loss)
    assert largest_difference(accumulated, at_once) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_the_mean_of_each_micro_batch_is_another_update(bert, tmp_path, method):
    # Without a compute_loss_func, Trainer takes the model's own loss: the difference that the tests above must see
    accumulated = double_precision(bert, tmp_path, method, 8, 4, None)
    at_once = double_precision(bert, tmp_path, method, 32, 1, None)
    assert largest_difference(accumulated, at_once) > 1e-5

"""Options with which a run would fail late are refused in one line before data are read and the model is loaded."""

from __future__ import annotations

import os
import shlex

import pytest
from tiny_text import assert_one_line, sam_hf

import sam_hf.recipes.finetune_text as recipe
from sam_hf.errors import UsageError

REFUSED = {
    # A package that is not installed
    "--optim adamw_bnb_8bit": "optim=adamw_bnb_8bit: You need to install `bitsandbytes`",
    "--optim galore_adamw --optim_target_modules all-linear": "optim=galore_adamw: You need to install `galore_torch`",
    "--optim lomo --sam_method none": "optim=lomo: You need to install `lomo_optim`",
    "--optim grokadamw": "optim=grokadamw: Please install grokadamw",
    "--optim adamw_anyprecision": "optim=adamw_anyprecision: ",
    "--use_liger_kernel": "use_liger_kernel needs liger-kernel",
    "--report_to mlflow": "report_to=mlflow needs a package that is not installed",
    "--report_to tensorboard comet_ml": "report_to=comet_ml needs a package that is not installed",
    # A word that is misspelt
    "--report_to tensorbord": "report_to=tensorbord is not known: did you mean tensorboard?",
    "--report_to nobody": "report_to=nobody is not known: it must be all, none, or some of ",
    "--torch_compile --torch_compile_backend nothing": "torch_compile_backend=nothing is not known",
    "--lr_scheduler_type liner": "invalid choice: 'liner'",
    # What the optimizer or the schedule does not take
    "--optim lomo": "optim=lomo updates the weights inside the backward pass, which sam_method=sam does not support",
    "--optim_args momentum": "optim_args=momentum: ",
    "--optim sgd --optim_args momentum=high": "could not convert string to float: 'high'",
    "--optim sgd --optim_args nesterov=true": "Nesterov momentum requires a momentum",
    "--adam_beta1 2": "Invalid beta parameter at index 0: 2.0",
    "--lr_scheduler_type cosine_with_min_lr": "lr_scheduler_type=cosine_with_min_lr: One of min_lr or min_lr_rate",
    "--lr_scheduler_type warmup_stable_decay": "num_decay_steps",
    "--lr_scheduler_type polynomial --lr_scheduler_kwargs '{\"pover\": 2}'": "unexpected keyword argument 'pover'",
    # Numbers
    "--learning_rate=-1": "learning_rate=-1.0 is not allowed: it must be a finite number of at least 0",
    "--learning_rate nan": "learning_rate=nan is not allowed",
    "--learning_rate inf": "learning_rate=inf is not allowed",
    "--weight_decay=-1": "weight_decay=-1.0 is not allowed",
    "--max_grad_norm nan": "max_grad_norm=nan is not allowed",
    "--per_device_train_batch_size 0": "per_device_train_batch_size=0 is not allowed: it must be at least 1",
    "--per_device_eval_batch_size 0": "per_device_eval_batch_size=0 is not allowed",
    "--gradient_accumulation_steps 0": "gradient_accumulation_steps=0 is not allowed",
    "--dataloader_num_workers=-1": "dataloader_num_workers=-1 is not allowed",
    "--label_smoothing_factor 2": "label_smoothing_factor=2.0 is not allowed: it must be from 0 to 1",
    "--seed=-1": "seed=-1 is not allowed",
    "--max_steps 0": "max_steps=0 leaves nothing to train",
    "--num_train_epochs 0": "num_train_epochs=0 leaves nothing to train",
    "--lora_r 0": "lora_r=0 is not allowed: it must be at least 1",
    "--lora_dropout 1": "lora_dropout=1.0 is not allowed",
    # A method or a precision that is not possible here
    "--sam_method nbar": "sam_method=nbar balances LoRA adapters: give lora_r too",
    "--fp16": "fp16 needs a GPU",
    "--batch_eval_metrics": "batch_eval_metrics is not offered here",
    # Files that are named in an option
    "--deepspeed nowhere.json": "deepspeed=nowhere.json cannot be read: No such file",
    "--fsdp full_shard --fsdp_config nowhere.json": "fsdp_config=nowhere.json cannot be read: No such file",
    "--accelerator_config nowhere.json": "accelerator_config=nowhere.json cannot be read: No such file",
    "--fsdp full_shard --fsdp_config BROKEN": "broken.json is not allowed: it is not valid JSON",
    "--accelerator_config LIST": "list.json is not allowed: it must be an object of JSON",
    "--lr_scheduler_kwargs nothing": "lr_scheduler_kwargs=nothing is not allowed: it is not valid JSON",
    "--lr_scheduler_kwargs '{\"a\"'": 'lr_scheduler_kwargs={"a" is not allowed: it is not valid JSON',
    "--lr_scheduler_kwargs 3": "lr_scheduler_kwargs=3 is not allowed: it must be an object of JSON",
    # The metric of the best model
    "--metric_for_best_model acuracy": "did you mean accuracy?",
    "--metric_for_best_model eval_mse": "metric_for_best_model=eval_mse is not allowed: it must be one of loss, ",
    "--metric_for_best_model sharpness_m": "metric_for_best_model=sharpness_m is not allowed",
    "--metric_for_best_model accuracy --prediction_loss_only": "it must be one of loss",
    "--metric_for_best_model accuracy --greater_is_better false": "whose greatest value is the best: leave it out",
    "--metric_for_best_model loss --greater_is_better true": "whose smallest value is the best: leave it out",
    "--save_strategy best": "save_strategy=best needs metric_for_best_model",
    "--lr_scheduler_type reduce_lr_on_plateau --eval_strategy epoch --metric_for_best_model accuracy": (
        'give lr_scheduler_kwargs={"mode": "max"}'
    ),
    # The folder
    "--output_dir /proc/nobody/out": "output_dir=/proc/nobody/out cannot be written to",
    "--output_dir BROKEN/out": "broken.json is a file",
    "--output_dir BROKEN": "broken.json is a file",
    "--resume_from_checkpoint nowhere": "resume_from_checkpoint=nowhere does not exist",
    "--resume_from_checkpoint .": "resume_from_checkpoint=. is no complete checkpoint: it has no readable",
}


@pytest.fixture
def files(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    return {"BROKEN": str(tmp_path / "broken.json"), "LIST": str(tmp_path / "list.json")}


@pytest.mark.parametrize("options, message", REFUSED.items(), ids=REFUSED)
def test_refused_before_the_model_is_loaded(train, monkeypatch, files, tmp_path, options, message):
    monkeypatch.setattr(recipe.AutoModelForSequenceClassification, "from_pretrained", None)
    given = options
    for name, path in files.items():
        given = given.replace(name, path)
    with pytest.raises(UsageError) as error:
        train(*shlex.split(given))
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "options",
    [
        "--max_grad_norm inf",
        "--optim adafactor",
        "--optim sgd --optim_args momentum=0.9,nesterov=true",
        "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs '{\"min_lr\": 1e-5}'",
        "--lr_scheduler_type reduce_lr_on_plateau --eval_strategy epoch",
        "--lr_scheduler_type reduce_lr_on_plateau --eval_strategy epoch --metric_for_best_model accuracy "
        '--lr_scheduler_kwargs \'{"mode": "max"}\'',
        "--sam_method nbar --lora_r 2",
        "--bf16",
        "--sharpness_every_eval --metric_for_best_model sharpness_m",
    ],
)
def test_allowed(train, options):
    train(*shlex.split(options), "--max_steps", 1)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_the_right_to_write(train, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(UsageError, match=r"output_dir=.*locked/out cannot be written to: Permission denied"):
        train(output="locked/out")


def test_a_full_disk(train, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(UsageError, match="cannot be written to: No space left on device"):
        train()


@pytest.mark.parametrize(
    "options",
    ["--optim adamw_bnb_8bit", "--report_to mlflow", "--metric_for_best_model acuracy", "--deepspeed nowhere.json"],
)
def test_as_a_user_sees_it(words, options):
    assert_one_line(sam_hf("text", *words(*options.split())), options.split()[0].lstrip("-"))

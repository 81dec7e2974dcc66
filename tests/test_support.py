"""What SAM refuses to run under, and that plain training is not refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

import sam_hf.support
from sam_hf import SAMTrainer
from sam_hf.support import check_supported
from tiny import arguments, perceptron, points


def trainer_like(**changes):
    """What `check_supported` looks at, as a single-process run on the CPU has it."""
    parts = {
        "is_deepspeed_enabled": False,
        "optim": "adamw_torch",
        "device": torch.device("cpu"),
        "fsdp_plugin": None,
        "parallelism_config": None,
    } | changes
    return SimpleNamespace(
        args=SimpleNamespace(optim=parts["optim"], device=parts["device"]),
        accelerator=SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=parts["fsdp_plugin"]), parallelism_config=parts["parallelism_config"]
        ),
        is_deepspeed_enabled=parts["is_deepspeed_enabled"],
        sam_args=SimpleNamespace(sam_method="sam"),
    )


REFUSED = [
    ({"is_deepspeed_enabled": True}, "DeepSpeed", "FSDP2"),
    ({"device": SimpleNamespace(type="xla")}, "XLA", "CUDA"),
    ({"fsdp_plugin": SimpleNamespace(fsdp_version=1)}, "FSDP1", "FSDP2"),
    ({"parallelism_config": SimpleNamespace(cp_enabled=True, sp_enabled=False)}, "context or sequence", "DDP"),
    ({"parallelism_config": SimpleNamespace(cp_enabled=False, sp_enabled=True)}, "context or sequence", "DDP"),
    ({"optim": "lomo"}, "lomo", "optimizer that steps"),
    ({"optim": "adalomo"}, "adalomo", "optimizer that steps"),
    ({"optim": "galore_adamw_layerwise"}, "layerwise", "optimizer that steps"),
]


@pytest.mark.parametrize(("changes", "what", "instead"), REFUSED, ids=str)
def test_refused_with_what_to_use_instead(changes, what, instead):
    with pytest.raises(ValueError, match="sam_method='sam' does not support") as error:
        check_supported(trainer_like(**changes))
    message = str(error.value)
    assert what in message and instead in message and "sam_method='none'" in message
    assert "\n" not in message


def test_sagemaker_model_parallelism_is_refused(monkeypatch):
    monkeypatch.setattr(sam_hf.support, "is_sagemaker_mp_enabled", lambda: True)
    with pytest.raises(ValueError, match="SageMaker"):
        check_supported(trainer_like())


@pytest.mark.parametrize("name", ["GRPOTrainer", "RLOOTrainer"])
def test_trainers_that_draw_data_in_the_training_step_are_refused(tmp_path, name):
    base = type(name, (SAMTrainer,), {})
    below = type("Mine", (base,), {})
    for cls in (base, below):
        with pytest.raises(ValueError, match=f"{cls.__name__}, which draws new data"):
            cls(model=perceptron(), args=arguments(tmp_path), train_dataset=points(8))


@pytest.mark.parametrize(
    "changes", [{}, {"fsdp_plugin": SimpleNamespace(fsdp_version=2)}, {"optim": "sgd"}, {"optim": "adafactor"}], ids=str
)
def test_supported(changes):
    check_supported(trainer_like(**changes))


def test_refused_when_the_trainer_is_built(tmp_path):
    with pytest.raises(ValueError, match="lomo"):
        SAMTrainer(model=perceptron(), args=arguments(tmp_path, optim="lomo"), train_dataset=points(8))


def test_refused_with_plain_arguments_too(tmp_path):
    plain = TrainingArguments(str(tmp_path), use_cpu=True, optim="lomo", report_to="none")
    with pytest.raises(ValueError, match="lomo"):
        SAMTrainer(model=perceptron(), args=plain, train_dataset=points(8))


def test_refused_when_changed_before_training(tmp_path):
    trainer = SAMTrainer(model=perceptron(), args=arguments(tmp_path, sam_method="none"), train_dataset=points(8))
    trainer.args.sam_method = "sam"
    trainer.is_deepspeed_enabled = True
    with pytest.raises(ValueError, match="DeepSpeed"):
        trainer._open_window(1)


def test_plain_training_is_not_refused(tmp_path):
    plain = type("GRPOTrainer", (SAMTrainer,), {})
    plain(model=perceptron(), args=arguments(tmp_path, sam_method="none"), train_dataset=points(8)).train()

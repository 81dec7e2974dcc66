"""A run in which sharpness cannot be measured at evaluations is refused before training begins."""

from __future__ import annotations

import pytest
from measured_training import STEPS, built, of_sharpness
from tiny import perceptron, points, trainer_of
from torch.utils.data import IterableDataset
from transformers import Trainer

from sam_hf import SAMArguments, SAMTrainingArguments, SharpnessCallback


class Stream(IterableDataset):
    def __iter__(self):
        return iter(points(32))


def test_a_stream_or_nothing_to_measure_on(tmp_path):
    for data, given in ((Stream(), "Stream without a length"), (None, "None")):
        with pytest.raises(ValueError, match=f"train_dataset, which is (a )?{given}"):
            trainer_of(perceptron(), data, tmp_path, callbacks=[SharpnessCallback()], eval_dataset=points(8))
    trainer = trainer_of(
        perceptron(), Stream(), tmp_path, callbacks=[SharpnessCallback(points(8))], eval_dataset=points(8), **STEPS
    )
    trainer.train()
    assert of_sharpness(trainer.evaluate())


def test_rounded_weights(tmp_path):
    with pytest.raises(ValueError, match="bfloat16, whose rounding"):
        built(tmp_path, SharpnessCallback(), model=perceptron().bfloat16())
    with pytest.raises(ValueError, match="bf16_full_eval"):
        SAMTrainingArguments("out", use_cpu=True, bf16_full_eval=True, sharpness_every_eval=True)
    with pytest.raises(ValueError, match="bf16_full_eval"):
        built(tmp_path, SharpnessCallback(), bf16_full_eval=True)


@pytest.mark.parametrize("kind", ["fsdp", "deepspeed"])
def test_sharded_weights(tmp_path, kind):
    trainer = built(tmp_path, sam_method="none")
    setattr(trainer, f"is_{kind}_enabled", True)
    with pytest.raises(ValueError, match="whose weights are sharded"):
        SharpnessCallback().add_to(trainer)


def test_a_model_that_is_rounded_later(tmp_path):
    trainer = built(tmp_path, SharpnessCallback())
    trainer.model.bfloat16()
    with pytest.raises(ValueError, match="bfloat16"):
        trainer.train()
    assert trainer.state.global_step == 0


def test_a_plain_trainer_that_it_was_not_added_to(tmp_path):
    trainer = trainer_of(
        perceptron(),
        points(32),
        tmp_path,
        trainer_class=Trainer,
        callbacks=[SharpnessCallback()],
        **STEPS | {"eval_strategy": "no"},
    )
    with pytest.raises(ValueError, match=r"add_to\(trainer\)"):
        trainer.train()


@pytest.mark.parametrize(
    ("field", "value"),
    [("max_examples", 0), ("rho", -1.0), ("rho", float("nan")), ("m", 0), ("tolerance", 0.0), ("max_products", 0)],
)
def test_arguments_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field}={value}"):
        SharpnessCallback(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sharpness_every_eval", "yes"),
        ("sharpness_examples", 0),
        ("sharpness_rho", -0.1),
        ("sharpness_m", 1.5),
    ],
)
def test_fields_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"{field}={value!r}"):
        SAMArguments(**{field: value})

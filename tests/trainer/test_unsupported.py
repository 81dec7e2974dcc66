"""What SAM refuses to run under: by name, with what to use instead, and with plain training still allowed."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
from tiny import perceptron, points, trainer_of
from transformers import Trainer

import sam_hf.trainer.refusals
from sam_hf import SAMMixin, SAMTrainer
from sam_hf.trainer.refusals import check_supported


def fake_trainer(
    device="cpu",
    optim="adamw_torch",
    deepspeed=False,
    fsdp_plugin=None,
    parallelism=None,
    method="sam",
    world_size=1,
    even_batches=True,
    drop_last=False,
    m=None,
    shared=False,
    static_graph=None,
) -> SimpleNamespace:
    return SimpleNamespace(
        args=SimpleNamespace(
            optim=optim,
            device=SimpleNamespace(type=device),
            world_size=world_size,
            dataloader_drop_last=drop_last,
            ddp_static_graph=static_graph,
            per_device_train_batch_size=4,
        ),
        accelerator=SimpleNamespace(
            state=SimpleNamespace(fsdp_plugin=fsdp_plugin), parallelism_config=parallelism, even_batches=even_batches
        ),
        model=torch.nn.Identity(),
        is_deepspeed_enabled=deepspeed,
        is_fsdp_enabled=fsdp_plugin is not None,
        sam_args=SimpleNamespace(sam_method=method, sam_m=m, sam_sync_perturbation=shared, sam_ascent_fraction=1.0),
    )


UNEVEN = {"world_size": 2, "even_batches": False, "m": 2}
FSDP2 = SimpleNamespace(fsdp_version=2)


REFUSED = {
    "DeepSpeed": {"deepspeed": True},
    "XLA": {"device": "xla"},
    "FSDP1": {"fsdp_plugin": SimpleNamespace(fsdp_version=1)},
    "FSDP1 of old": {"fsdp_plugin": SimpleNamespace()},
    "context or sequence parallelism": {"parallelism": SimpleNamespace(cp_enabled=True, sp_enabled=False)},
    "context or sequence parallelism too": {"parallelism": SimpleNamespace(cp_enabled=False, sp_enabled=True)},
    "ddp_static_graph=True": {"static_graph": True, "world_size": 2},
    "slices": {**UNEVEN, "shared": True},
    "slices too": {**UNEVEN, "fsdp_plugin": FSDP2},
    "optim='lomo'": {"optim": "lomo"},
    "optim='adalomo'": {"optim": "adalomo"},
    "optim='galore_adamw_layerwise'": {"optim": "galore_adamw_layerwise"},
}


@pytest.mark.parametrize("named", REFUSED)
def test_refusal_names_what_is_refused_and_what_to_use(named):
    with pytest.raises(ValueError) as error:
        check_supported(fake_trainer(**REFUSED[named]))
    message = str(error.value)
    assert named.removesuffix(" of old").removesuffix(" too") in message
    assert "sam_method='sam'" in message
    assert "Use " in message
    assert "sam_method='none'" in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "trainer",
    [
        fake_trainer(),
        fake_trainer(device="cuda"),
        fake_trainer(device="mps", optim="sgd"),
        fake_trainer(fsdp_plugin=FSDP2),
        fake_trainer(parallelism=SimpleNamespace(cp_enabled=False, sp_enabled=False)),
        fake_trainer(static_graph=True),
        fake_trainer(static_graph=True, world_size=2, shared=True),
        fake_trainer(**UNEVEN),
        fake_trainer(**UNEVEN, shared=True, drop_last=True),
        fake_trainer(**UNEVEN | {"even_batches": True}, shared=True),
        fake_trainer(**UNEVEN | {"m": 4}, shared=True),
        fake_trainer(**UNEVEN | {"world_size": 1}, shared=True),
    ],
)
def test_the_rest_is_supported(trainer):
    check_supported(trainer)


def test_sagemaker_model_parallelism(monkeypatch):
    monkeypatch.setattr(sam_hf.trainer.refusals, "is_sagemaker_mp_enabled", lambda: True)
    with pytest.raises(ValueError, match="SageMaker model parallelism"):
        check_supported(fake_trainer())


class DeepSpeedTrainer(Trainer):
    """Says that it runs under DeepSpeed once it is built."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.is_deepspeed_enabled = True


class SAMDeepSpeedTrainer(SAMMixin, DeepSpeedTrainer):
    pass


def test_refused_when_the_trainer_is_built(tmp_path):
    with pytest.raises(ValueError, match="DeepSpeed"):
        trainer_of(perceptron(), points(8), tmp_path, SAMDeepSpeedTrainer)


def test_plain_training_is_allowed_and_a_method_set_later_is_refused(tmp_path):
    trainer = trainer_of(perceptron(), points(8), tmp_path, SAMDeepSpeedTrainer, sam_method="none")
    # The flag alone: nothing of DeepSpeed is here to train with
    trainer.is_deepspeed_enabled = False
    trainer.train()
    trainer.is_deepspeed_enabled = True
    trainer.args.sam_method = "sam"
    with pytest.raises(ValueError, match="DeepSpeed"):
        trainer.get_batch_samples(iter([]), 1, torch.device("cpu"))


@pytest.mark.parametrize("optim", ["lomo", "galore_adafactor_layerwise"])
def test_optimizers_that_step_in_the_backward_pass(tmp_path, optim):
    with pytest.raises(ValueError, match=f"optim='{optim}'"):
        trainer_of(perceptron(), points(8), tmp_path, optim=optim)
    trainer_of(perceptron(), points(8), tmp_path, optim=optim, sam_method="none")


def test_sam_trainer_is_supported(tmp_path):
    assert isinstance(trainer_of(perceptron(), points(8), tmp_path), SAMTrainer)


def of_a_newer_trl(**members):
    """A trainer class that no list of names can know."""
    return type("BrandNewTrainer", (Trainer,), {"__module__": "trl.experimental.brand_new", **members})


def wrapping_step():
    def training_step(self, *args, **kwargs):
        return Trainer.training_step(self, *args, **kwargs)

    return training_step


def generating_step(self, model, inputs, num_items_in_batch=None):
    return Trainer.training_step(self, model, dict(inputs), num_items_in_batch)


@pytest.mark.parametrize(
    ("members", "refused"),
    [
        ({"_prepare_inputs": lambda self, inputs: inputs}, True),
        ({"training_step": generating_step}, True),
        ({"training_step": functools.wraps(generating_step)(wrapping_step())}, True),
        ({"training_step": wrapping_step()}, False),
        ({}, False),
    ],
    ids=["prepares its inputs", "works on its inputs", "the same, decorated", "wraps the step", "neither"],
)
def test_a_trl_trainer_that_draws_data_is_refused_whatever_its_name(tmp_path, members, refused):
    def build():
        return trainer_of(perceptron(), points(8), tmp_path, type("Mine", (SAMMixin, of_a_newer_trl(**members)), {}))

    if refused:
        with pytest.raises(ValueError, match="Mine, which draws new data at every training step"):
            build()
    else:
        build()

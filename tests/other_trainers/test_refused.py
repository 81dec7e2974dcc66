"""SAM refuses those of TRL's trainers that cannot run two passes per update."""

from __future__ import annotations

import importlib
import pkgutil
from types import SimpleNamespace

import pytest
from causal import llama, preferences, reward_model, run, texts, with_sam
from tiny import perceptron, points, trained
from transformers import Trainer

from sam_hf import SAMMixin, SAMTrainingArguments
from sam_hf.trainer.refusals import draws_data

trl = pytest.importorskip("trl")
experimental = pytest.importorskip("trl.experimental")

# These make one pass over the inputs that they are given; their `training_step` only opens a context around it
SUPPORTED = {"SFTTrainer", "DPOTrainer", "RewardTrainer", "KTOTrainer", "CPOTrainer", "ORPOTrainer", "TPOTrainer"}

REFUSED = {
    *("GRPOTrainer", "RLOOTrainer", "DistillationTrainer", "OnlineDPOTrainer", "GKDTrainer", "GOLDTrainer"),
    *("IWOPDTrainer", "SDFTTrainer", "SDPOTrainer", "A2POTrainer", "AsyncGRPOTrainer", "AsyncDistillationTrainer"),
}


def trainers():
    """Return every public trainer of TRL by its name."""
    modules = [trl]
    for package in pkgutil.iter_modules(experimental.__path__, "trl.experimental."):
        if package.ispkg:
            modules.append(importlib.import_module(package.name))
    named = {}
    for module in modules:
        for name in getattr(module, "__all__", None) or dir(module):
            if name.endswith("Trainer"):
                named.setdefault(name, getattr(module, name))
    return {name: found for name, found in named.items() if isinstance(found, type) and issubclass(found, Trainer)}


def unbuilt(trainer_class: type, sam_method: str = "sam"):
    """Return SAM over the class with what the check reads, which needs no models, teachers or servers."""
    trainer = object.__new__(type("Mine", (SAMMixin, trainer_class), {}))
    trainer.args = SAMTrainingArguments(use_cpu=True, report_to="none", sam_method=sam_method)
    trainer.accelerator = SimpleNamespace(state=SimpleNamespace(), parallelism_config=None, even_batches=True)
    trainer.is_deepspeed_enabled = trainer.is_fsdp_enabled = False
    trainer.model = None
    return trainer


@pytest.fixture(scope="module")
def found():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
        return trainers()


def test_every_trainer_with_data_of_its_own_is_refused(found):
    assert {"GRPOTrainer", "RLOOTrainer", "DistillationTrainer", "OnlineDPOTrainer", "GKDTrainer"} <= found.keys()
    for name, trainer_class in found.items():
        if draws_data(trainer_class):
            assert name not in SUPPORTED
            with pytest.raises(ValueError, match="Mine, which draws new data"):
                unbuilt(trainer_class)._refuse_unsupported()
            unbuilt(trainer_class, sam_method="none")._refuse_unsupported()
        else:
            assert name in SUPPORTED, f"{name}: is it one pass over the inputs it is given?"
            unbuilt(trainer_class)._refuse_unsupported()
    assert not [name for name in REFUSED & found.keys() if not draws_data(found[name])]


@pytest.mark.parametrize("name", ["DistillationTrainer", "RewardTrainer"])
def test_a_users_own_trainer_of_such_a_name_is_not_refused(tmp_path, name):
    own = type(name, (SAMMixin, Trainer), {})
    trained(perceptron(), points(8), tmp_path, trainer_class=own, sam_m=2, max_steps=1)


@pytest.mark.parametrize(
    "names, make, data",
    [
        (("DPOTrainer", "DPOConfig"), llama, preferences),
        (("RewardTrainer", "RewardConfig"), reward_model, preferences),
    ],
    ids=["dpo", "reward"],
)
def test_groups_smaller_than_a_batch_of_pairs(tmp_path, names, make, data):
    classes = with_sam(*(getattr(trl, name) for name in names))
    options = {"ref_model": llama()} if names[0] == "DPOTrainer" else {}
    with pytest.raises(ValueError, match=r"sam_m=2 in SAM\w+, whose batches cannot be cut into examples .*=4"):
        run(classes, make(), data(8), tmp_path, sam_m=2, **options)
    with pytest.raises(ValueError, match=r"sam_ascent_fraction=0.5 in SAM\w+, whose batches stack pairs"):
        run(classes, make(), data(8), tmp_path, sam_ascent_fraction=0.5, **options)
    run(classes, make(), data(8), tmp_path, sam_m=4, max_steps=1, **options)


def test_groups_smaller_than_a_batch_without_padding(tmp_path):
    classes = with_sam(trl.SFTTrainer, trl.SFTConfig)
    with pytest.raises(ValueError, match="sequences packed"):
        run(classes, llama(), texts(8), tmp_path, sam_m=2, padding_free=True, max_length=None)

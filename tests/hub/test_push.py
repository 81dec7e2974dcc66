"""Pushing over HTTP: SAM pushes the same files as Trainer, to the same place and at the same time."""

from __future__ import annotations

import threading

import pytest
import tiny
import torch
from hub_checks import assert_no_secret, assert_pushed, logits_of
from huggingface_hub import HfApi, snapshot_download
from loopback_hub import LoopbackHub
from safetensors.torch import load
from transformers import TrainerCallback

from sam_hf import SAMTrainer


def checkpoints_in(files) -> set[str]:
    return {path.split("/")[0] for path in files if "/" in path}


@pytest.mark.parametrize(
    "strategy, progress, folders",
    [
        ("end", 0, set()),
        ("every_save", 3, set()),
        ("checkpoint", 3, {"last-checkpoint"}),
        ("all_checkpoints", 3, {"checkpoint-1", "checkpoint-2", "checkpoint-3"}),
    ],
)
def test_strategies(connected, make, strategy, progress, folders):
    trainer = make(hub_strategy=strategy, hub_token=connected.token)
    trainer.train()
    trainer.push_to_hub()

    messages = [commit.message for commit in connected.commits("run")]
    assert messages[-1] == "End of training"
    assert [m for m in messages if m.startswith("Training in progress") and "checkpoint" not in m] == [
        f"Training in progress, step {step + 1}" for step in range(progress)
    ]
    files = connected.files("run")
    assert checkpoints_in(files) == folders
    for folder in folders:
        assert {f"{folder}/{name}" for name in ("optimizer.pt", "sam_state.json", "trainer_state.json")} <= set(files)
    assert_pushed(trainer, "tester/run")
    assert_no_secret(connected, trainer.args.output_dir)
    assert trainer.args.hub_token == connected.token


def test_last_checkpoint_of_the_hub_resumes(connected, make, tmp_path):
    whole = make(name="whole", push_to_hub=False, sam_method="vasso", max_steps=4)
    whole.train()
    make(hub_strategy="checkpoint", sam_method="vasso", max_steps=2).train()

    fetched = snapshot_download("tester/run", allow_patterns="last-checkpoint/*")
    resumed = make(name="resumed", push_to_hub=False, sam_method="vasso", max_steps=4)
    resumed.train(resume_from_checkpoint=f"{fetched}/last-checkpoint")
    tiny.assert_same(resumed.model.state_dict(), whole.model.state_dict())


def test_without_push_to_hub_in_the_arguments(connected, make):
    trainer = make(push_to_hub=False)
    trainer.train()
    assert not connected.requests
    trainer.push_to_hub(commit_message="by hand", tags=["mine"])
    assert [commit.message for commit in connected.commits("run")] == ["by hand"]
    assert b"- mine\n" in connected.files("run")["README.md"]
    assert_pushed(trainer, "tester/run")


def test_save_model_pushes(connected, make):
    trainer = make(hub_strategy="end")
    trainer.train()
    trainer.save_model()
    assert [commit.message for commit in connected.commits("run")] == ["Model save"]


def test_private(connected, make, connect):
    trainer = make(hub_private_repo=True, hub_model_id="tester/kept-back")
    trainer.train()
    trainer.push_to_hub()
    assert connected.repository("kept-back").private
    assert_pushed(trainer, "tester/kept-back")
    connect(connected.url, None)
    with pytest.raises(OSError, match="tester/kept-back"):
        assert_pushed(trainer, "tester/kept-back", force_download=True)


def test_existing_repository_keeps_its_files(connected, make):
    repository = HfApi(endpoint=connected.url).create_repo("tester/run", token=connected.token, private=True)
    HfApi(endpoint=connected.url).upload_file(
        path_or_fileobj=b"mine", path_in_repo="notes.txt", repo_id=repository.repo_id, token=connected.token
    )
    trainer = make()
    trainer.train()
    trainer.push_to_hub()
    assert connected.files("run")["notes.txt"] == b"mine"
    assert connected.repository("run").private
    assert_pushed(trainer, "tester/run")


def test_revision(connected, make):
    trainer = make(hub_revision="seed-1", hub_strategy="all_checkpoints")
    trainer.train()
    trainer.push_to_hub()
    assert not connected.commits("run"), "nothing on main"
    assert checkpoints_in(connected.files("run", "seed-1")) == {f"checkpoint-{i}" for i in (1, 2, 3)}
    assert_pushed(trainer, "tester/run", revision="seed-1")

    trainer.push_to_hub(revision="seed-2")  # creates this branch
    assert [commit.message for commit in connected.commits("run", "seed-2")] == ["End of training"]


def test_second_push_sends_what_changed(connected, make):
    trainer = make(hub_strategy="end")
    trainer.train()
    trainer.push_to_hub()
    sent = connected.count("PUT", "/lfs/")
    assert sent == 2  # model and arguments
    trainer.push_to_hub()
    assert connected.count("PUT", "/lfs/") == sent
    assert len(connected.commits("run")) == 1, "no empty commit"


def test_training_does_not_wait_for_a_push(connected, make):
    """The first push is delayed until training is done. Trainer skips the pushes that are due in the meantime."""
    release = connected.hold("/commit/")
    under_way = []

    class Release(TrainerCallback):
        def on_train_end(self, args, state, control, **kwargs):
            under_way.extend(r.status for r in connected.requests if "/commit/" in r.path)
            release.set()

    trainer = make(hub_strategy="every_save", hub_always_push=False, callbacks=[Release()])
    trainer.train()
    assert under_way in ([None], []), "requested at most, and not answered"
    assert [commit.message for commit in connected.commits("run")] == ["Training in progress, step 1"]
    trainer.push_to_hub()
    assert_pushed(trainer, "tester/run")


def test_files_do_not_change_under_a_push(connected, make):
    """With `hub_always_push`, the next push waits, because it overwrites the model that is being sent."""
    sums = []

    class Look(TrainerCallback):
        def on_save(self, args, state, control, model=None, **kwargs):
            sums.append(float(sum(p.detach().double().sum() for p in model.parameters())))

    trainer = make(hub_strategy="every_save", callbacks=[Look()], max_steps=6)
    # Without the wait, all of the training would take less than this second
    threading.Timer(1.0, connected.hold("/preupload/").set).start()
    trainer.train()
    assert len(connected.commits("run")) == 6
    for commit, expected in zip(connected.commits("run"), sums, strict=True):
        model = load(connected.store.content(commit.files["model.safetensors"]))
        assert float(sum(p.double().sum() for p in model.values())) == pytest.approx(expected, rel=1e-12)


def test_push_in_the_background(connected, make):
    trainer = make(hub_strategy="end")
    trainer.train()
    future = trainer.push_to_hub(blocking=False)
    assert future.result(timeout=60).oid == connected.commits("run")[-1].oid
    assert_pushed(trainer, "tester/run")


def test_large_files_in_parts(connect, make):
    with LoopbackHub(chunk=1000) as hub:
        connect(hub.url, hub.token)
        trainer = make(hub_strategy="end")
        trainer.train()
        trainer.push_to_hub()
        assert hub.count("PUT", r"/lfs/\w+/2") and hub.count("POST", "/lfs-complete/")
        assert_pushed(trainer, "tester/run")


def test_lora(connected, make, tmp_path):
    peft = pytest.importorskip("peft")
    tiny.bert(dtype=torch.float32).save_pretrained(tmp_path / "base")
    base = type(tiny.bert()).from_pretrained(tmp_path / "base")
    model = peft.get_peft_model(base, peft.LoraConfig("SEQ_CLS", r=2, target_modules=["query", "value"]))
    trainer = make(model, hub_strategy="checkpoint", hub_token=connected.token)
    trainer.train()
    trainer.push_to_hub()
    assert {"adapter_config.json", "adapter_model.safetensors", "last-checkpoint/adapter_model.safetensors"} <= set(
        connected.files("run")
    )
    # The number of labels is in the base model's configuration, which the test keeps in a folder
    loaded = peft.AutoPeftModelForSequenceClassification.from_pretrained("tester/run")
    assert torch.equal(logits_of(loaded), logits_of(trainer.model))
    assert_no_secret(connected, trainer.args.output_dir)


def test_plain_arguments_do_not_save_the_token_either(connected, tmp_path):
    """Only the trainer's class is changed: the arguments are plain `TrainingArguments`."""
    from transformers import TrainingArguments

    args = TrainingArguments(
        str(tmp_path / "run"),
        use_cpu=True,
        max_steps=2,
        save_steps=1,
        push_to_hub=True,
        hub_strategy="checkpoint",
        hub_always_push=True,
        hub_token=connected.token,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SAMTrainer(model=tiny.bert(dtype=torch.float32), args=args, train_dataset=tiny.sentences(8))
    trainer.train()
    trainer.push_to_hub()
    assert_no_secret(connected, tmp_path)
    assert b"hub_token" in connected.files("run")["training_args.bin"], "the arguments are there, without their token"

"""Pushes that fail. They fail before training if possible, and the training is never lost."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
import tiny
from hub_checks import assert_no_secret, assert_pushed
from loopback_hub import LoopbackHub
from safetensors.torch import load_file
from transformers.utils.hub import hf_api

from sam_hf.errors import HubError, HubRefusedError


def our_warnings(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "sam_hf.hub.mixin" and r.levelname == "WARNING"]


def assert_kept(trainer) -> None:
    """Check that the whole model is in `output_dir`."""
    tiny.assert_same(load_file(f"{trainer.args.output_dir}/model.safetensors"), trainer.model.state_dict())


# --- before training --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given_as", ["HF_TOKEN", "hub_token"])
def test_wrong_token(hub, connect, make, tmp_path, given_as):
    wrong = "hf_" + "w" * 34
    connect(hub.url, wrong if given_as == "HF_TOKEN" else hub.token)
    with pytest.raises(HubRefusedError, match=rf"refused the token from {given_as}.*401.*give a valid token") as error:
        make(hub_token=wrong if given_as == "hub_token" else None)
    assert wrong not in str(error.value) and "\n" not in str(error.value)
    assert not list(tmp_path.rglob("*.safetensors")), "nothing was trained"


def test_no_token(hub, connect, make):
    connect(hub.url, None)
    with pytest.raises(HubRefusedError, match="there is no token: log in with `hf auth login`, or set HF_TOKEN"):
        make()


@pytest.mark.parametrize("exists", [False, True])
def test_token_that_may_only_read(hub, connect, make, exists):
    """The Hub client accepts a repository that exists, even if the token may not write to it."""
    if exists:
        hub.store.create("tester/run", private=False)
    connect(hub.url, hub.read_token)
    with pytest.raises(HubRefusedError, match=r"the token has no write access to tester/run \(403"):
        make(hub_model_id="tester/run")


def test_namespace_of_another(connected, make):
    with pytest.raises(
        HubRefusedError, match=r"no write access to google/bert \(403.*namespace 'google'.*use a token that has it"
    ):
        make(hub_model_id="google/bert")


def test_name_that_no_repository_can_have(connected, make):
    with pytest.raises(
        HubRefusedError, match=r"'my models' is not a valid repository name.*give another hub_model_id"
    ):
        make(name="my models")
    assert not connected.store.repositories


def test_offline_mode(connected, make, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubRefusedError, match="HF_HUB_OFFLINE is set, so the Hub cannot be reached: unset it"):
        make()


def test_unreachable(connect, make):
    with LoopbackHub() as hub:
        url, token = hub.url, hub.token
    connect(url, token)  # a port on which no server listens any more
    with pytest.raises(HubError, match=f"the Hub at {url} cannot be reached .ConnectError") as error:
        make()
    assert not isinstance(error.value, HubRefusedError), "trying again may help"


def test_hub_out_of_order(connected, make):
    connected.fail("POST", "/repos/create", 503)
    with pytest.raises(HubError, match="answered 503: a fault of the test") as error:
        make()
    assert not isinstance(error.value, HubRefusedError)


def test_another_server_need_not_know_about_rights(connected, make):
    connected.fail("GET", "/auth-check", 404)
    make()


# --- in the middle of training ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, path, status, why",
    [
        ("POST", "/commit/", 500, "answered 500"),
        ("POST", "/preupload/", 401, "refused the token from HF_TOKEN"),
        ("PUT", "/lfs/", 503, "answered 503"),
        ("PUT", "/lfs/", None, "cannot be reached .RemoteProtocolError"),
    ],
    ids=["commit", "token", "large-file", "broken-off"],
)
def test_training_goes_on(connected, make, caplog, method, path, status, why):
    plain = make(name="plain", push_to_hub=False)
    plain.train()
    trainer = make(hub_strategy="all_checkpoints")
    connected.fail(method, path, status)
    trainer.train()

    tiny.assert_same(trainer.model.state_dict(), plain.model.state_dict())
    assert trainer.state.global_step == 3
    output = trainer.args.output_dir
    assert {p.name for p in Path(output).glob("checkpoint-*")} == {"checkpoint-1", "checkpoint-2", "checkpoint-3"}
    messages = our_warnings(caplog)
    assert len(messages) == 6  # for the model and the checkpoint, three times each
    assert f"hf upload tester/run {output} . --exclude '_*' --exclude 'checkpoint-*'" in messages[-2]
    assert f"hf upload tester/run {output}/checkpoint-3 checkpoint-3" in messages[-1]
    for message in messages:
        assert "Training is not affected: all files are saved there" in message and "\n" not in message

    with pytest.raises(HubError, match=f"{why}.*Nothing is lost: the model is in {output}. Push it with: hf upload"):
        trainer.push_to_hub()
    assert_kept(trainer)
    assert Path(output, "README.md").is_file()
    assert_no_secret(connected, output)


def test_next_push_makes_up_for_a_failed_one(connected, make, caplog):
    """A push fails, and the next one sends everything."""
    connected.fail("POST", "/commit/", 500, times=1)
    trainer = make(hub_strategy="every_save")
    trainer.train()
    assert len(our_warnings(caplog)) == 1
    trainer.push_to_hub()
    assert connected.commits("run")[0].message == "Training in progress, step 2"
    assert_pushed(trainer, "tester/run")


def test_temporary_faults_cause_no_warning(connected, make, caplog):
    connected.fail("PUT", "/lfs/", 503, times=2)
    connected.fail("POST", "/preupload/", 500, times=1)
    trainer = make(hub_strategy="end")
    trainer.train()
    trainer.push_to_hub()
    assert not our_warnings(caplog)
    assert_pushed(trainer, "tester/run")


def test_fault_that_the_hub_did_not_cause(connected, make, caplog, monkeypatch):
    """Trainer's own work before a push can fail too."""

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    trainer = make(hub_strategy="every_save")
    monkeypatch.setattr(shutil, "copy", full)
    trainer.train()
    assert trainer.state.global_step == 3
    assert len(our_warnings(caplog)) == 3
    assert "OSError: [Errno 28] No space left on device" in our_warnings(caplog)[0]


# --- at the end -------------------------------------------------------------------------------------------------


def test_interrupted_push_goes_on(connected, make):
    """Files that were uploaded before the fault are not sent again."""
    trainer = make(hub_strategy="end")
    trainer.train()
    connected.fail("POST", "/commit/", 502)
    with pytest.raises(HubError, match="answered 502"):
        trainer.push_to_hub()
    sent = connected.count("PUT", "/lfs/")
    assert sent == 2
    connected.heal()
    trainer.push_to_hub()
    assert connected.count("PUT", "/lfs/") == sent
    assert_pushed(trainer, "tester/run")


def test_second_run_after_a_failed_push(connected, make):
    """A second run of the same program has nothing left to train, and it pushes."""
    connected.fail("PUT", "/lfs/", 503, after=1)
    epochs = {"hub_strategy": "end", "max_steps": -1, "num_train_epochs": 2}
    trainer = make(**epochs)
    trainer.train()
    with pytest.raises(HubError):
        trainer.push_to_hub()
    connected.heal()
    again = make(**epochs)
    again.train(resume_from_checkpoint=True)
    again.push_to_hub()
    tiny.assert_same(again.model.state_dict(), trainer.model.state_dict())
    assert_pushed(trainer, "tester/run")


def test_push_by_hand_as_the_message_says(connected, make, run_command):
    trainer = make(hub_strategy="end", hub_revision="seed-1")
    trainer.train()
    connected.fail("POST", "/commit/", 500)
    with pytest.raises(HubError) as error:
        trainer.push_to_hub()
    connected.heal()
    command = str(error.value).split("Push it with: ")[1]
    done = run_command(command, connected.url, connected.token)
    assert done.returncode == 0, done.stderr
    assert not any("checkpoint" in path for path in connected.files("run", "seed-1"))
    assert_pushed(trainer, "tester/run", revision="seed-1")
    assert shlex.split(command)[:2] == ["hf", "upload"]


@pytest.mark.parametrize(
    "path, arguments, options",
    [
        ("/repos/create", {}, {}),
        ("/branch/", {"hub_revision": "b"}, {}),
        ("/branch/", {}, {"revision": "b"}),
    ],
    ids=["repository", "hub_revision", "revision"],
)
def test_model_is_saved_if_the_hub_is_first_asked_after_training(connected, make, path, arguments, options):
    """Without `push_to_hub` in the arguments, nothing is saved and the Hub is not asked before."""
    trainer = make(push_to_hub=False, save_strategy="no", **arguments)
    trainer.train()
    connected.fail("POST", path, 401)
    with pytest.raises(HubError, match="Nothing is lost") as error:
        trainer.push_to_hub(**options)
    assert not isinstance(error.value, HubRefusedError), "training was done"
    assert_kept(trainer)
    connected.heal()
    trainer.push_to_hub(**options)
    assert_pushed(trainer, "tester/run", revision="b" if arguments or options else "main")


@pytest.mark.parametrize("given", ["arguments", "call"])
def test_push_by_hand_keeps_a_private_model_private(connected, make, run_command, given):
    """This also holds if the repository could not be created."""
    trainer = make(push_to_hub=False, save_strategy="no", hub_private_repo=True if given == "arguments" else None)
    trainer.train()
    connected.fail("POST", "/repos/create", 503)
    with pytest.raises(HubError) as error:
        trainer.push_to_hub(**({"private": True} if given == "call" else {}))
    connected.heal()
    done = run_command(str(error.value).split("Push it with: ")[1], connected.url, connected.token)
    assert done.returncode == 0, done.stderr
    assert connected.repository("run").private
    assert_pushed(trainer, "tester/run")


def test_save_model_saves_even_if_its_push_fails(connected, make):
    trainer = make(hub_strategy="end", save_strategy="no")
    trainer.train()
    connected.fail("POST", "/commit/", 500)
    with pytest.raises(HubError, match="Nothing is lost"):
        trainer.save_model()
    assert_kept(trainer)


def test_push_that_fails_in_the_background_warns(connected, make, caplog):
    trainer = make(hub_strategy="end")
    trainer.train()
    connected.fail("POST", "/commit/", 500)
    future = trainer.push_to_hub(blocking=False)
    assert future.exception(timeout=60) is not None
    hf_api().run_as_future(lambda: None).result()  # waits until the only thread that pushes has finished the job
    (message,) = our_warnings(caplog)
    assert "answered 500" in message and "hf upload tester/run" in message


def test_model_that_cannot_be_saved_is_not_reported_as_a_hub_error(connected, make, monkeypatch):
    trainer = make(hub_strategy="end", save_strategy="no")
    trainer.train()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(trainer.model), "save_pretrained", full)
    with pytest.raises(OSError, match="No space left") as error:
        trainer.push_to_hub()
    assert not isinstance(error.value, HubError)


def test_card_that_the_hub_refuses(connected, make):
    """The error repeats what the Hub says about the card."""
    trainer = make(hub_strategy="end")
    trainer.train()
    with pytest.raises(HubError, match=r'400: "base_model" is not valid.*Nothing is lost'):
        trainer.push_to_hub(finetuned_from="/home/me/model")

"""Training that is interrupted and resumed ends bit for bit where it would have ended."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import assert_same, bert, sentences, snapshot, trained, trainer_of
from transformers import Trainer

import sam_hf.trainer
from sam_hf.trainer.checkpoints import last_whole_checkpoint, load_record

RUN = {
    "optim": "adamw_torch",
    "learning_rate": 0.01,
    "max_grad_norm": 1.0,
    "gradient_accumulation_steps": 2,
    "lr_scheduler_type": "linear",
    "train_sampling_strategy": "random",  # the order of a shuffled epoch has to come back too
    "save_strategy": "steps",
    "save_steps": 1,
    "sam_rho": 0.1,
    "max_steps": 6,
}
OPTIONS = {
    "default": {},
    "two ascent steps": {"sam_ascent_steps": 2},
    "m = micro-batch": {"sam_m": 4},
    "m = half a micro-batch": {"sam_m": 2},
    "stochastic rounding": {"sam_stochastic_rounding": True},
    "other random numbers in each pass": {"sam_replay_rng": False},
    "SAM on every second update": {"sam_interval": 2},
    "SAM from the fourth update": {"sam_start_ratio": 0.5},
    "a radius that follows the optimizer's steps": {"sam_rho": None, "sam_rho_schedule": "auto"},
    "SAM on one in three updates, late": {"sam_interval": 3, "sam_start_ratio": 0.3, "sam_rho_schedule": "cosine"},
}


def make(folder, options):
    """22 examples: an epoch has windows of 4+4, 4+4 and 4+2; an epoch ends after the third."""
    model = bert(dropout=0.2, dtype=torch.bfloat16 if "sam_stochastic_rounding" in options else torch.float32)
    return model, trainer_of(model, sentences(22), folder, **(RUN | options))


@pytest.mark.parametrize("name", OPTIONS)
def test_from_the_end_of_every_update(tmp_path, name):
    options = OPTIONS[name]
    model, whole = make(tmp_path / "whole", options)
    whole.train()
    assert len({entry["loss"] for entry in whole.state.log_history if "loss" in entry}) == RUN["max_steps"]
    for step in range(1, RUN["max_steps"]):
        folder = tmp_path / f"from-{step}"
        shutil.copytree(tmp_path / "whole" / f"checkpoint-{step}", folder / f"checkpoint-{step}")
        resumed, again = make(folder, options)
        again.train(resume_from_checkpoint=True)
        assert_same(snapshot(resumed), snapshot(model))
        # The last entry is the summary, with the seconds it took
        assert again.state.log_history[:-1] == whole.state.log_history[:-1]


def test_checkpoint_is_trainers_own(tmp_path):
    contents = {}
    for method in ("none", "sam"):
        trained(bert(), sentences(32), tmp_path / method, **(RUN | {"sam_method": method, "max_steps": 1}))
        checkpoint = tmp_path / method / "checkpoint-1"
        contents[method] = {path.name for path in checkpoint.iterdir()}
        optimizer = torch.load(checkpoint / "optimizer.pt", weights_only=True)
        assert {name for state in optimizer["state"].values() for name in state} == {"step", "exp_avg", "exp_avg_sq"}
    assert contents["sam"] - contents["none"] == {"sam_state.json"}
    assert json.loads((tmp_path / "sam" / "checkpoint-1" / "sam_state.json").read_text())["method"] == "sam"


@pytest.mark.parametrize("first", ["Trainer", "SAMTrainer"])
def test_checkpoints_of_plain_trainer_resume_under_sam_and_back(tmp_path, first):
    """What they do until the change is plain training's and SAM's own: continued by hand from the same weights."""

    def run(folder, plain, steps, resume=False):
        model = bert(dropout=0.2, dtype=torch.float32)
        trainer = trainer_of(model, sentences(22), folder, Trainer if plain else sam_hf.SAMTrainer, **RUN)
        trainer.args.max_steps = steps
        trainer.train(resume_from_checkpoint=resume)
        return model, trainer

    def with_stop(plain):
        folder = tmp_path / ("plain" if plain else "sam")
        run(folder, plain, RUN["max_steps"])
        return folder / "checkpoint-3"

    mixed = tmp_path / "mixed"
    shutil.copytree(with_stop(first == "Trainer"), mixed / "checkpoint-3")
    model, trainer = run(mixed, first != "Trainer", RUN["max_steps"], resume=True)
    assert trainer.state.global_step == RUN["max_steps"]
    kept = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert ["sam_sharpness" in entry for entry in kept] == [first == "SAMTrainer"] * 3 + [first == "Trainer"] * 3
    # The same change made without a checkpoint in between: a trainer that becomes the other one after three updates
    changing = bert(dropout=0.2, dtype=torch.float32)
    switching = trainer_of(changing, sentences(22), tmp_path / "switch", **RUN)
    open_window = switching._open_window

    def opened(batches):
        plain = (switching.state.global_step < 3) == (first == "Trainer")
        switching.args.sam_method = "none" if plain else "sam"
        return open_window(batches)

    switching._open_window = opened
    switching.train()
    assert_same(snapshot(model), snapshot(changing))


@pytest.mark.parametrize(
    "content", ["", '{"version": 1, "met', "[]", '{"version": 9}', '{"version": 1, "method": "sam"}']
)
def test_corrupt_state_file_is_named_and_training_resumes_without_it(tmp_path, caplog, content):
    model, trainer = make(tmp_path, {"max_steps": 3})
    trainer.train()
    shutil.rmtree(tmp_path / "checkpoint-3")
    (tmp_path / "checkpoint-2" / "sam_state.json").write_text(content)
    resumed, again = make(tmp_path, {"max_steps": 3})
    again.train(resume_from_checkpoint=True)
    messages = [
        r.getMessage() for r in caplog.records if r.name.startswith("sam_hf") and "sam_state.json" in r.getMessage()
    ]
    assert len(messages) == 1 and str(tmp_path / "checkpoint-2") in messages[0]
    assert_same(snapshot(resumed), snapshot(model))


def test_last_whole_checkpoint(tmp_path):
    _, trainer = make(tmp_path, {"max_steps": 3})
    trainer.train()
    three, two, one = (tmp_path / f"checkpoint-{step}" for step in (3, 2, 1))
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-10").write_text("a file")
    assert last_whole_checkpoint(tmp_path) == str(three)
    state = three / "trainer_state.json"
    state.write_text(state.read_text()[:-20])
    assert last_whole_checkpoint(tmp_path) == str(two)
    (two / "sam_state.json").write_text('{"version": 1, "method": "sam", "world_size": 2, "tensors": false}')
    shutil.copy(two / "rng_state.pth", two / "rng_state_0.pth")
    assert last_whole_checkpoint(tmp_path) == str(one), "the generators of rank 1 are missing"
    (two / "rng_state_1.pth").write_bytes((two / "rng_state.pth").read_bytes()[:-100])
    assert last_whole_checkpoint(tmp_path) == str(one), "the generators of rank 1 are cut off"
    shutil.copy(two / "rng_state.pth", two / "rng_state_1.pth")
    assert last_whole_checkpoint(tmp_path) == str(two)
    for path in (two, one):
        (path / "trainer_state.json").unlink()
    assert last_whole_checkpoint(tmp_path) is None
    with pytest.raises((ValueError, OSError)):
        make(tmp_path, {})[1].train(resume_from_checkpoint=True)
    assert last_whole_checkpoint(tmp_path / "nothing") is None


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), "it has no readable optimizer.pt"),
        (
            lambda file: file.write_text("version https://git-lfs.github.com/spec/v1"),
            "it has no readable optimizer.pt",
        ),
        (lambda file: file.unlink(), "it has no state of the optimizer"),
    ],
    ids=["cut short", "a pointer", "left out"],
)
def test_a_checkpoint_without_its_optimizer_is_not_whole(tmp_path, caplog, damage, message):
    make(tmp_path, {"max_steps": 2})[1].train()
    damage(tmp_path / "checkpoint-2" / "optimizer.pt")
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-1")
    assert f"{tmp_path / 'checkpoint-2'} is skipped, because it is incomplete: {message}" in caplog.text


def test_a_record_of_the_run_is_in_every_checkpoint(tmp_path):
    trainer = make(tmp_path, {"max_steps": 2})[1]
    trainer.run_record = {"run": "a", "options": {"seed": 1}}
    trainer.train()
    assert [load_record(tmp_path / f"checkpoint-{n}") for n in (1, 2)] == [trainer.run_record] * 2
    assert load_record(tmp_path) is None
    (tmp_path / "checkpoint-2" / "run.json").write_text("{")
    assert load_record(tmp_path / "checkpoint-2") is None


@pytest.mark.parametrize("kills", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, kills):
    """SIGKILL in mid-update, in mid-save and before the first one; each run ends as the one that was left alone."""
    worker = Path(__file__).parents[1] / "support" / "resume_worker.py"
    answer = subprocess.run(
        [sys.executable, str(worker), str(tmp_path), str(kills)],
        capture_output=True,
        text=True,
        timeout=180 + 10 * kills,
        env=dict(os.environ, OMP_NUM_THREADS="1"),
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    assert len(json.loads(answer.stdout.splitlines()[-1])["kills"]) >= kills


def test_no_file_holds_the_hub_token(tmp_path):
    token = "hf_this_is_a_secret"
    _, trainer = make(tmp_path, {"hub_token": token, "max_steps": 2})
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"training_args.bin", "trainer_state.json", "optimizer.pt"} <= {path.name for path in files}
    assert not [path for path in files if token.encode() in path.read_bytes()]
    assert trainer.args.hub_token == token, "the trainer can still push"
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).sam_rho == RUN["sam_rho"]

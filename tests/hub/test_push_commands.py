"""The finetuning programs with `--push_to_hub`, run as a user runs them."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hub_checks import assert_no_secret
from loopback_hub import LoopbackHub
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from sam_hf import command_line as cli

REPOSITORY = Path(__file__).parents[2]
TEXTS = ["good film", "bad plot", "a fine film", "the awful plot", "great plot", "poor film"] * 4


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> dict[str, Path]:
    """Return the paths of a tiny checkpoint and a file of examples."""
    folder = tmp_path_factory.mktemp("inputs")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted({word for text in TEXTS for word in text.split()})]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder / "bert")
    torch.manual_seed(0)
    size = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=16, **size)).save_pretrained(folder / "bert")
    rows = [{"text": text, "label": i % 2} for i, text in enumerate(TEXTS)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {"model": folder / "bert", "data": folder / "train.jsonl"}


@pytest.fixture
def options(inputs, tmp_path) -> list[str]:
    words = ["--model_name_or_path", inputs["model"], "--train_file", inputs["data"], "--validation_file"]
    words += [
        inputs["data"],
        "--do_train",
        "--do_eval",
        "--num_train_epochs",
        "1",
        "--output_dir",
        tmp_path / "reviews",
    ]
    words += "--sam_rho 0.01 --use_cpu true --push_to_hub".split()
    words += "--report_to none --disable_tqdm true".split()
    return [str(word) for word in words]


@pytest.fixture
def wide_model(inputs, tmp_path) -> Path:
    """Return a checkpoint of 17 MB, which is more than a connection buffers before the other end reads."""
    folder = tmp_path / "wide"
    BertModel(BertConfig.from_pretrained(inputs["model"], intermediate_size=1 << 18)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(inputs["model"]).save_pretrained(folder)
    return folder


@pytest.fixture
def finetune(run_command, options):
    def run(hub_url: str, token: str | None, *more):
        return run_command(["scripts/finetune_text.py", *options, *more], hub_url, token)

    return run


@pytest.fixture
def finetune_here(options, capsys):
    """Run the same program in this process. Return the exit status and, if it exits (`ends`), the error's line."""
    spec = importlib.util.spec_from_file_location("finetune_text", REPOSITORY / "scripts" / "finetune_text.py")
    script = sys.modules["finetune_text"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    def run(*more, ends: bool = True) -> tuple[int, str]:
        with pytest.raises(SystemExit) if ends else nullcontext() as end:
            cli.run(lambda: script.main([*options, *more]))
        if not ends:
            return 0, ""
        return end.value.code, capsys.readouterr().err.splitlines()[-1]

    return run


def assert_same_logits(*checkpoints: str | Path) -> None:
    """Check that two checkpoints give the same logits, bit for bit, with the tokenizer of the first."""
    text = AutoTokenizer.from_pretrained(checkpoints[0])("a good film", return_tensors="pt")
    first, second = (AutoModelForSequenceClassification.from_pretrained(name)(**text).logits for name in checkpoints)
    assert torch.equal(first, second)


def test_push(hub, finetune, tmp_path, connect):
    options = ["--hub_token", hub.token, "--hub_private_repo", "true", "--hub_strategy", "checkpoint"]
    options += ["--save_strategy", "epoch", "--label_noise", "0.25"]
    done = finetune(hub.url, None, *options)
    assert done.returncode == 0, done.stderr
    assert hub.repository("reviews").private
    # One push per checkpoint, and one at the end
    assert [commit.message for commit in hub.commits("reviews")] == [
        "Training in progress, epoch 1",
        "Training in progress, epoch 1, checkpoint",
        "End of training",
    ]
    assert hub.token not in done.stdout + done.stderr
    assert_no_secret(hub, tmp_path / "reviews", tmp_path / "hf_home")

    connect(hub.url, hub.token)
    assert_same_logits("tester/reviews", tmp_path / "reviews")
    card = hub.files("reviews")["README.md"].decode()
    assert "| label noise | 25% of the training labels replaced by another class (6 labels) |" in card
    assert str(tmp_path) not in card and str(Path(sys.prefix)) not in card


def test_the_same_command_after_a_kill_in_the_middle_of_an_upload(
    hub, start_command, run_command, options, wide_model, connect, tmp_path
):
    words = ["scripts/finetune_text.py", *options, "--model_name_or_path", wide_model, "--hub_token", hub.token]
    words += ["--save_strategy", "epoch", "--num_train_epochs", "2"]
    stall = hub.stall("/lfs/")
    with start_command(words, hub.url, None) as killed:
        assert stall.reached.wait(60)
        killed.kill()
    stall.released.set()
    assert killed.returncode == -signal.SIGKILL
    assert set(hub.files("reviews")) == {".gitattributes"} and "checkpoint-3" in os.listdir(tmp_path / "reviews")

    done = run_command(words, hub.url, None)
    assert done.returncode == 0, done.stderr
    pushed, output = hub.files("reviews"), tmp_path / "reviews"
    assert {"model.safetensors", "config.json", "tokenizer.json", "training_args.bin", "README.md"} <= set(pushed)
    for name in set(pushed) - {".gitattributes"}:
        assert pushed[name] == (output / name).read_bytes(), name
    assert_no_secret(hub, output, tmp_path / "hf_home")
    connect(hub.url, hub.token)
    assert_same_logits("tester/reviews", output)


def test_card_without_a_push(finetune_here, options, connect, tmp_path):
    """The card is also written without a push, but it does not replace a card that somebody wrote by hand."""
    options.remove("--push_to_hub")
    finetune_here(ends=False)
    card = tmp_path / "reviews" / "README.md"
    assert "## Sharpness-Aware Minimization" in card.read_text(encoding="utf-8")
    card.write_text("---\nlicense: mit\n---\nMine.\n", encoding="utf-8")
    finetune_here("--overwrite_output_dir", ends=False)
    assert card.read_text(encoding="utf-8") == "---\nlicense: mit\n---\nMine.\n"


@pytest.mark.slow
@pytest.mark.distributed
def test_two_processes_push_once(hub, run_command, options, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    words = [*torchrun, REPOSITORY / "scripts" / "finetune_text.py", *options, "--hub_token", hub.token]
    done = run_command([*words, "--save_strategy", "epoch", "--hub_strategy", "every_save"], hub.url, None)
    assert done.returncode == 0, done.stderr
    messages = [commit.message for commit in hub.commits("reviews")]
    assert messages == ["Training in progress, epoch 1", "End of training"]
    assert_no_secret(hub, tmp_path / "reviews")

    hub.fail("POST", "/commit/", 500)
    done = run_command([*words, "--overwrite_output_dir", "--seed", "1"], hub.url, None)
    assert done.returncode == 1
    assert sum(line.startswith("error: push_to_hub: ") for line in done.stderr.splitlines()) == 1
    assert "Nothing is lost" in done.stderr


def test_wrong_token_exits_with_status_2(hub, connect, finetune_here, tmp_path):
    connect(hub.url, "hf_wrong")
    status, error = finetune_here()
    assert status == 2
    assert error.startswith("error: push_to_hub: ")
    assert "refused the token from HF_TOKEN or `hf auth login` (401" in error
    assert not (tmp_path / "reviews").exists(), "nothing was trained"


def test_unreachable_hub(connect, finetune_here):
    with LoopbackHub() as hub:
        url, token = hub.url, hub.token
    connect(url, token)
    status, error = finetune_here()
    assert status == 1
    assert error.startswith(f"error: push_to_hub: the Hub at {url} cannot be reached")


def test_failed_push_loses_nothing(hub, finetune, tmp_path):
    hub.fail("POST", "/commit/", 500)
    done = finetune(hub.url, hub.token, "--save_strategy", "epoch", "--hub_strategy", "every_save")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = done.stderr.splitlines()[-1]
    output = tmp_path / "reviews"
    assert f"answered 500: a fault of the test. Nothing is lost: the model is in {output}." in message
    assert "Push it with: hf upload tester/reviews" in message
    assert "model written to" in done.stdout, "the report came before the push"
    for name in ("model.safetensors", "eval_results.json", "README.md", "trainer_state.json", "checkpoint-3"):
        assert (output / name).exists(), name
    assert_no_secret(hub, output)

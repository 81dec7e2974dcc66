"""A checkpoint that is a pointer, cut short, incomplete or not readable is refused in one line that names the file."""

from __future__ import annotations

import json
import shutil
import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_text import assert_one_line, sam_hf, save_tiny_bert, write_sentences
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertModel,
)

from sam_hf.errors import UsageError
from sam_hf.inputs.checkpoints import from_checkpoint, model_path

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 12345\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("whole") / "bert")


@pytest.fixture
def folder(whole, tmp_path) -> Path:
    return Path(shutil.copytree(whole, tmp_path / "bert"))


def as_torch_file(folder: Path) -> Path:
    """Replace model.safetensors by pytorch_model.bin."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def as_shards(folder: Path) -> None:
    """Replace the file of the weights by several and an index."""
    model = BertModel.from_pretrained(folder)
    (folder / "model.safetensors").unlink(missing_ok=True)
    model.save_pretrained(folder, max_shard_size="1KB")


def load_all(folder: Path) -> None:
    """Load what the text recipe loads, in its order."""
    path = model_path(str(folder))
    for auto_class in (AutoConfig, AutoTokenizer, AutoModelForSequenceClassification):
        from_checkpoint(auto_class, path)


def message(call, *arguments) -> str:
    with pytest.raises(UsageError) as error:
        call(*arguments)
    text = str(error.value)
    assert "\n" not in text and len(text) < 400, text
    return text


def test_a_whole_checkpoint_is_loaded(folder):
    load_all(folder)
    as_torch_file(folder)
    load_all(folder)
    as_shards(folder)
    (folder / "pytorch_model.bin").unlink()
    assert len(list(folder.glob("model-0*.safetensors"))) > 1
    load_all(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_pointer_of_git_lfs(folder, name):
    (folder / name).write_text(POINTER)
    # Before data are read and the model is loaded
    assert f"{folder / name} is a pointer of Git LFS" in message(model_path, str(folder))


def test_a_pointer_of_git_lfs_for_the_older_format_of_weights(folder):
    as_torch_file(folder).write_text(POINTER)
    assert "pytorch_model.bin is a pointer of Git LFS" in message(model_path, str(folder))


def test_a_pointer_would_be_read_as_a_vocabulary(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text(POINTER)
    assert "vocab.txt is a pointer of Git LFS" in message(model_path, str(folder))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "vocab.txt", "tf_model.h5", "merges.txt"])
def test_a_pointer_that_is_not_read_is_none_of_our_business(folder, name):
    (folder / name).write_text(POINTER)
    load_all(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("kept", [0, 5, -150], ids=["nothing left", "5 bytes left", "150 bytes less"])
def test_a_file_that_is_cut_short(folder, name, kept):
    path = as_torch_file(folder) if name == "pytorch_model.bin" else folder / name
    path.write_bytes(path.read_bytes()[:kept])
    text = message(model_path, str(folder))
    assert str(path) in text and ("is empty" if kept == 0 else "cut short") in text


def test_a_file_that_no_package_reads(folder):
    as_torch_file(folder).write_bytes(b"<html>404</html>")
    assert "pytorch_model.bin is cut short or no file of torch" in message(model_path, str(folder))


def test_shards_that_are_not_there(folder):
    as_shards(folder)
    shard = sorted(folder.glob("model-0*.safetensors"))[1]
    shard.unlink()
    assert f"{shard} is missing: the index of the weights names it" in message(model_path, str(folder))


def test_an_index_of_shards_that_is_no_json(folder):
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    (folder / "model.safetensors.index.json").write_text("{")
    assert "model.safetensors.index.json is no JSON" in message(model_path, str(folder))


def test_a_config_that_is_no_object(folder):
    (folder / "config.json").write_text("[1]")
    assert "config.json must hold an object: it holds [1]" in message(model_path, str(folder))


@pytest.mark.parametrize(
    "config, expected", [({}, "`model_type`"), ({"model_type": "bret"}, "model type `bret`"), ({"a": 1}, "model_type")]
)
def test_a_config_of_no_known_model(folder, config, expected):
    (folder / "config.json").write_text(json.dumps(config))
    assert expected in message(load_all, folder)


def test_a_folder_that_is_no_checkpoint(tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty is empty: a checkpoint has a config.json and weights" in message(load_all, tmp_path / "empty")
    assert "has no config.json" in message(load_all, tmp_path)


def test_weights_are_missing(folder):
    (folder / "model.safetensors").unlink()
    assert f"the folder {folder} has no weights: one of model.safetensors, " in message(load_all, folder)


def test_without_its_files_a_tokenizer_would_know_no_word(folder):
    for name in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (folder / name).unlink()
    assert "has no files of a tokenizer: vocab.txt or tokenizer.json" in message(load_all, folder)


def test_an_image_processor_is_missing(folder):
    assert "preprocessor_config.json" in message(from_checkpoint, AutoImageProcessor, str(folder))


def test_an_adapter_without_a_config(folder, tmp_path):
    peft = pytest.importorskip("peft")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    adapted.save_pretrained(tmp_path / "adapter")
    text = message(load_all, tmp_path / "adapter")
    assert "holds an adapter" in text and f"its base model, which is {folder}" in text
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text(POINTER)
    assert "adapter_model.safetensors is a pointer" in message(model_path, str(tmp_path / "adapter"))


@pytest.mark.parametrize("damage", ["cut short", "left out"])
def test_the_weights_of_an_adapter_that_is_measured(folder, tmp_path, damage):
    from sam_hf.commands.sharpness.models import find_checkpoint, load_model
    from sam_hf.inputs.labels import LabelScheme

    peft = pytest.importorskip("peft")
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    adapted = peft.get_peft_model(model, peft.LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"]))
    adapted.save_pretrained(tmp_path / "adapter")
    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    scheme = LabelScheme("single_label_classification", ["a", "b"])
    load_model(find_checkpoint(str(tmp_path / "adapter"), "model"), scheme, seed=0)
    if damage == "left out":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(UsageError) as error:
        load_model(find_checkpoint(str(tmp_path / "adapter"), "model"), scheme, seed=0)
    assert "\n" not in str(error.value) and str(tmp_path / "adapter") in str(error.value)


@pytest.mark.parametrize(
    "model, file, package",
    [("t5", "spiece.model", "sentencepiece"), ("xlm-roberta", "sentencepiece.bpe.model", "sentencepiece")],
)
def test_a_tokenizer_that_needs_another_package(folder, monkeypatch, model, file, package):
    class WithoutPackages:
        """Loads as AutoTokenizer does where the package is missing."""

        @staticmethod
        def from_pretrained(path):
            raise ValueError(f"Couldn't instantiate the tokenizer. You need sentencepiece or tiktoken. {'x ' * 400}")

    monkeypatch.setitem(sys.modules, package, None)
    for path in folder.glob("*token*"):
        path.unlink()
    (folder / "config.json").write_text(json.dumps({"model_type": model}))
    (folder / file).write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    text = message(from_checkpoint, WithoutPackages, str(folder))
    assert text.startswith(f"the tokenizer of {folder} ({file}) needs {package}") and f"pip install {package}" in text


def test_a_long_message_is_cut_to_its_first_sentences(folder):
    long = types.SimpleNamespace(__name__="Auto", from_pretrained=lambda path: int("x" * 20 + ". Or not" * 60))
    assert message(from_checkpoint, long, str(folder)).startswith(f"the checkpoint {folder} cannot be loaded: ")


def test_a_device_without_memory_is_not_the_checkpoints_fault(folder):
    def from_pretrained(path):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        from_checkpoint(types.SimpleNamespace(__name__="Auto", from_pretrained=from_pretrained), str(folder))


@pytest.mark.parametrize("program", ["text", "sharpness"])
def test_as_a_user_sees_it(folder, tmp_path, program):
    (folder / "model.safetensors").write_text(POINTER)
    data = ["--train_file", write_sentences(tmp_path / "train.csv")]
    options = {
        "text": [
            "--model_name_or_path",
            folder,
            "--do_train",
            "--output_dir",
            tmp_path / "out",
            "--report_to",
            "none",
        ],
        "sharpness": ["--model", folder, "--out", tmp_path / "out"],
    }[program]
    assert_one_line(sam_hf(program, *options, *data, "--use_cpu"), f"{folder / 'model.safetensors'} is a pointer")
    assert not (tmp_path / "out").exists()

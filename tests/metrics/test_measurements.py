"""Tests of the `evaluate` measurement, which is loaded by its path, as users load it, without the Hub."""

from __future__ import annotations

import os
import subprocess
import sys

import datasets
import evaluate
import pytest
import torch
from sharpness.exact import batches_of, exact_hessian
from tiny import assert_same, bert, perceptron, points, sentences, snapshot
from torch import nn

from sam_hf import measurements
from sam_hf.methods import METHODS
from sam_hf.update.random_state import RandomState

KEYS = "lambda_max eigenvalues residuals converged m_sharpness m_sharpness_max m_sharpness_error loss lambda_ratio"


@pytest.fixture(scope="module")
def sharpness():
    return evaluate.load(measurements.path("sharpness"), module_type="measurement")


def test_it_is_a_measurement_that_describes_itself(sharpness):
    assert isinstance(sharpness, evaluate.Measurement)
    assert sharpness.module_type == "measurement"
    assert "max_examples" in sharpness.inputs_description
    assert sharpness.citation == METHODS["sam"].citation
    assert sharpness.info.reference_urls == ["https://arxiv.org/abs/2010.01412"]
    # The type may be left out
    assert isinstance(evaluate.load(measurements.path("sharpness")), evaluate.Measurement)


def test_eigenvalues_are_those_of_the_exact_hessian(sharpness):
    model, data = perceptron(dropout=0.5), points(20)
    expected = torch.linalg.eigvalsh(exact_hessian(model, data)).flip(0)[:6]
    before, random_before = snapshot(model), RandomState()
    found = sharpness.compute(model=model, data=data, batch_size=6, k=6, tolerance=1e-5)
    assert found.keys() == set(KEYS.split())
    assert found["eigenvalues"] == pytest.approx(expected.tolist(), rel=1e-6)
    assert found["lambda_max"] == found["eigenvalues"][0]
    assert found["lambda_ratio"] == pytest.approx(float(expected[0] / expected[4]), rel=1e-6)
    assert found["converged"] and max(found["residuals"]) < 1e-4
    model.eval()
    batch = batches_of(data, 20)[0]
    assert found["loss"] == pytest.approx(model(**batch)["loss"].item(), rel=1e-12)
    assert_same(snapshot(model), before)
    assert RandomState() == random_before


def test_rises_are_those_at_the_worst_point_of_each_group(sharpness):
    model, data = perceptron(), points(12)
    found = sharpness.compute(model=model, data=data, rho=0.1, m=4, k=1)
    rises = []
    for batch in batches_of(data, 4):
        other = perceptron()
        loss = other(**batch)["loss"]
        gradient = torch.autograd.grad(loss, list(other.parameters()))
        scale = 0.1 / torch.cat([g.flatten() for g in gradient]).norm()
        with torch.no_grad():
            for p, g in zip(other.parameters(), gradient, strict=True):
                p.add_(scale * g)
            rises.append(float(other(**batch)["loss"] - loss))
    assert found["m_sharpness"] == pytest.approx(sum(rises) / 3, rel=1e-9)
    assert found["m_sharpness_max"] == pytest.approx(max(rises), rel=1e-9)
    assert found["m_sharpness_error"] == pytest.approx(float(torch.tensor(rises).std()) / 3**0.5, rel=1e-6)
    assert "lambda_ratio" not in found


def test_batches_a_loss_and_a_number_of_examples(sharpness):
    model, data = perceptron(), points(24)

    def twice(model, batch):
        return 2 * nn.functional.cross_entropy(model(batch["x"])["logits"], batch["labels"])

    plain = sharpness.compute(model=model, dataloader=batches_of(data[:10], 5), k=1, tolerance=1e-6)
    cut = sharpness.compute(model=model, dataloader=batches_of(data, 5), max_examples=10, k=1, tolerance=1e-6)
    doubled = sharpness.compute(model=model, dataloader=batches_of(data[:10], 5), loss=twice, k=1, tolerance=1e-6)
    assert cut == plain
    assert doubled["lambda_max"] == pytest.approx(2 * plain["lambda_max"], rel=1e-8)
    drawn = sharpness.compute(model=model, data=data, max_examples=10, k=1)
    assert drawn == sharpness.compute(model=model, data=data, max_examples=10, k=1)
    assert drawn["loss"] != sharpness.compute(model=model, data=data, max_examples=10, k=1, seed=1)["loss"]


def test_a_dataset_of_datasets_with_a_collator(sharpness):
    def padded(rows):
        ids = [torch.tensor(row["input_ids"]) for row in rows]
        return {
            "input_ids": nn.utils.rnn.pad_sequence(ids, batch_first=True),
            "attention_mask": nn.utils.rnn.pad_sequence([torch.ones_like(i) for i in ids], batch_first=True),
            "labels": torch.tensor([row["label"] for row in rows]),
        }

    cut = [s["input_ids"][: 3 + i % 3].tolist() for i, s in enumerate(sentences(8))]
    rows = [{"text": "", "input_ids": ids, "label": i % 3} for i, ids in enumerate(cut)]
    found = sharpness.compute(model=bert(), data=datasets.Dataset.from_list(rows), collator=padded, k=1)
    assert found["lambda_max"] > 0


@pytest.mark.parametrize("given", [{}, {"data": points(4), "dataloader": []}], ids=["neither", "both"])
def test_one_source_of_examples(sharpness, given):
    with pytest.raises(ValueError, match=r"Give either .*: (neither|both) was given\."):
        sharpness.compute(model=perceptron(), **given)


def test_unknown_names(sharpness):
    with pytest.raises(ValueError, match=r"name='flatness' is not allowed: it must be 'sharpness'\."):
        measurements.path("flatness")
    with pytest.raises(TypeError, match="radius"):
        sharpness.compute(model=perceptron(), data=points(4), radius=1)


def test_two_processes_at_once_offline_in_a_fresh_cache(tmp_path):
    code = """
from pathlib import Path
import evaluate, torch, transformers
import sam_hf.metrics
from sam_hf import measurements
for file in sorted(Path(sam_hf.metrics.__file__).parent.glob("[!_]*.py")):
    assert evaluate.load(str(file)).name == file.stem
sharpness = evaluate.load(measurements.path("sharpness"), module_type="measurement")
model = torch.nn.Linear(2, 1)
loss = lambda model, batch: (model(batch["x"]) ** 2).mean() / 2
print(sharpness.compute(model=model, data=[{"x": [1.0, 1.0]}] * 4, loss=loss, k=1)["lambda_max"])
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1"}
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    processes = [
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, cwd=tmp_path) for _ in range(2)
    ]
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        # x xᵀ over (w, b), x = (1, 1, 1)
        assert float(output) == pytest.approx(3, rel=1e-5)

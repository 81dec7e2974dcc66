"""The flatness of trained image models is correct, is resumed, and is made into a table."""

from __future__ import annotations

import io
import json
import sys

import accuracy_tables
import flatness
import numpy as np
import pytest
import torch
from datasets import Dataset
from PIL import Image
from torch.func import functional_call

SIZE, EXAMPLES = 8, 12


@pytest.fixture
def comparison(tmp_path):
    """Return what `sam-hf compare --keep_models` writes for two seeds, and the training examples."""
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    random = np.random.default_rng(0)
    images = random.integers(0, 255, (EXAMPLES, SIZE, SIZE, 3), dtype=np.uint8)
    encoded = []
    for pixels in images:
        Image.fromarray(pixels).save(file := io.BytesIO(), "PNG")
        encoded.append(file.getvalue())
    labels = [i % 3 for i in range(EXAMPLES)]
    Dataset.from_dict({"image": encoded, "label": labels}).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "runs").mkdir()
    for seed in (0, 1):
        torch.manual_seed(seed)
        size = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1}
        config = ViTConfig(**size, image_size=SIZE, patch_size=4, num_labels=3, hidden_dropout_prob=0.0)
        folder = tmp_path / "models" / f"adamw_seed{seed}"
        model = ViTForImageClassification(config)
        torch.nn.init.normal_(model.classifier.weight)
        model.save_pretrained(folder)
        ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
        record = {"status": "finished", "purpose": "final", "label_noise": 0.0, "seed": seed, "variant": "adamw"}
        record["evaluations"] = [{"eval_accuracy": 0.5}]
        (tmp_path / "runs" / f"{folder.name}.json").write_text(json.dumps(record))
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    return tmp_path, pixels, torch.tensor(labels)


def exact_eigenvalues(folder, pixels, labels) -> torch.Tensor:
    from transformers import ViTForImageClassification

    model = ViTForImageClassification.from_pretrained(folder, attn_implementation="eager").double().eval()
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(vector: torch.Tensor) -> torch.Tensor:
        parts = vector.split([shape.numel() for shape in shapes])
        weights = {n: part.view(shape) for n, part, shape in zip(names, parts, shapes, strict=True)}
        logits = functional_call(model, weights, kwargs={"pixel_values": pixels}).logits
        return torch.nn.functional.cross_entropy(logits, labels)

    vector = torch.cat([p.detach().flatten() for p in model.parameters()])
    return torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, vector))


def test_flatness_of_image_models(comparison, tmp_path, monkeypatch):
    folder, pixels, labels = comparison
    output = tmp_path / "flatness_image.json"
    command = ["flatness.py", "--comparison", str(folder), "--output", str(output), "--probes", "0"]
    command += ["--train_file", str(folder / "train.parquet"), "--examples", str(EXAMPLES), "--batch_size", "4"]
    monkeypatch.setattr(sys, "argv", [*command, "--tolerance", "0.001", "--seeds", "0"])
    flatness.main()
    first = json.loads(output.read_text())["models"]
    assert set(first) == {"adamw_seed0"}
    exact = exact_eigenvalues(folder / "models" / "adamw_seed0", pixels, labels)
    found = torch.tensor(first["adamw_seed0"]["eigenvalues"], dtype=torch.float64)
    assert found == pytest.approx(exact.flip(0)[:5], rel=1e-3)

    monkeypatch.setattr(sys, "argv", [*command, "--tolerance", "0.001"])
    flatness.main()
    both = json.loads(output.read_text())["models"]
    assert set(both) == {"adamw_seed0", "adamw_seed1"} and both["adamw_seed0"] == first["adamw_seed0"]
    monkeypatch.setattr(accuracy_tables, "RESULTS", tmp_path)
    row = next(line for line in accuracy_tables.flatness_table("image").splitlines() if line.startswith("| adamw"))
    assert row.count("±") == 5 and f"{both['adamw_seed1']['lambda_max']:.0f} |" in row

    monkeypatch.setattr(sys, "argv", [*command, "--tolerance", "0.01"])
    with pytest.raises(SystemExit):
        flatness.main()
    assert json.loads(output.read_text())["models"] == both

"""`sam-hf sharpness`: its numbers equal the exact Hessian's and the library's; two models, adapters, images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sharpness_runs import FEW, QUICK, save_bert

from sam_hf.commands.sharpness.command import main

REPOSITORY = Path(__file__).parents[2]


def exact_hessian(folder: Path, texts: list[str], labels: list[int]) -> torch.Tensor:
    """Return the Hessian of the mean loss over all examples, in float64."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").double().eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    named = dict(model.named_parameters())
    w = torch.cat([p.detach().flatten() for p in named.values()]).requires_grad_(True)
    parts = w.split([p.numel() for p in named.values()])
    weights = {name: part.view_as(p) for (name, p), part in zip(named.items(), parts, strict=True)}
    inputs = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    loss = torch.nn.functional.cross_entropy(
        torch.func.functional_call(model, weights, (), inputs).logits, torch.tensor(labels)
    )
    (gradient,) = torch.autograd.grad(loss, w, create_graph=True)
    return torch.stack([torch.autograd.grad(g, w, retain_graph=True)[0] for g in gradient])


def test_eigenvalues_and_trace_are_those_of_the_exact_hessian(bert, reviews, measure):
    rows = [line.rsplit(",", 1) for line in reviews.read_text().splitlines()[1:]]
    texts, labels = [text for text, _ in rows], [["bad", "good"].index(label) for _, label in rows]
    exact = exact_hessian(bert, texts, labels)
    result = measure(
        bert, "--train_file", reviews, "--hessian", "--max_examples", 99, "--tolerance", 1e-4, "--density_probes", 0
    )
    (model,) = result["models"]
    values = torch.linalg.eigvalsh(exact).flip(0)[:5]
    assert (result["version"], result["settings"]["examples"], model["parameters"]) == (1, 14, len(exact))
    torch.testing.assert_close(torch.tensor(model["hessian"]["eigenvalues"]).double(), values, rtol=1e-4, atol=1e-6)
    assert model["hessian"]["lambda_ratio"] == pytest.approx(float(values[0] / values[4]), rel=1e-3)
    assert abs(model["hessian"]["trace"] - float(exact.trace())) < 4 * model["hessian"]["trace_error"]
    assert model["hessian"]["product"] == "double_backward" and "eager" in model["hessian"]["attention"]
    assert "neighborhood" not in model and "landscape" not in model


def test_two_models_on_the_same_examples_and_directions(bert, reviews, measure, tmp_path):
    # The same network with its two classes in the other order: all numbers must be equal
    turned = save_bert(tmp_path / "turned", names=("good", "bad"))
    from safetensors.torch import load_file, save_file

    weights = load_file(turned / "model.safetensors")
    head = {name: t.flip(0).contiguous() if name.startswith("classifier") else t for name, t in weights.items()}
    save_file(head, turned / "model.safetensors", {"format": "pt"})
    options = ["--train_file", reviews, "--neighborhood", "--hessian", "--m", 3, "--directions", 2, *FEW]
    first, second = measure(bert, "--against", turned, *options)["models"]
    assert (first["name"], second["name"]) == ("first", "turned")
    assert first["loss"] == pytest.approx(second["loss"], rel=1e-6)
    assert first["hessian"]["eigenvalues"] == pytest.approx(second["hessian"]["eigenvalues"], rel=1e-2)
    for one, other in zip(first["neighborhood"]["m_sharpness"], second["neighborhood"]["m_sharpness"], strict=True):
        assert (one["m"], one["p"], one["mean"]) == (other["m"], other["p"], pytest.approx(other["mean"], rel=1e-3))


def test_landscape_and_the_line_between(bert, reviews, measure, tmp_path):
    other = save_bert(tmp_path / "other", seed=1)
    options = ["--train_file", reviews, "--landscape", "--line_points", 3, "--surface_points", 3]
    result = measure(bert, "--against", other, *options)
    for model in result["models"]:
        part = model["landscape"]
        assert part["line"]["x"] == [-1, 0, 1] and part["line"]["loss"][1] == pytest.approx(model["loss"], rel=1e-6)
        assert part["surface"]["loss"][0][1] == pytest.approx(part["line"]["loss"][0], rel=1e-5)
    between = dict(zip(np.round(result["between"]["t"], 6), result["between"]["loss"], strict=True))
    for t, model in zip((0.0, 1.0), result["models"], strict=True):
        assert between[t] == pytest.approx(model["loss"], rel=1e-5)
    # The same weights are measured twice: both use the same directions
    same = measure(bert, "--against", bert, *options, out="same")["models"]
    assert same[0]["landscape"] == same[1]["landscape"]


def test_m_sharpness_is_the_librarys_on_examples_in_random_order(bert, reviews, measure):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, DataCollatorWithPadding

    from sam_hf.inputs.splits import load_splits
    from sam_hf.sharpness import LossOracle, m_sharpness

    result = measure(bert, "--train_file", reviews, "--neighborhood", "--m", 4, "--rho", 0.1, "--directions", 2)
    from sam_hf.inputs.options import DataArguments

    drawn = load_splits(DataArguments(train_file=str(reviews)))["train"].shuffle(seed=0).select(range(10))
    tokenizer = AutoTokenizer.from_pretrained(bert)
    rows = [{**tokenizer(r["text"]), "labels": ["bad", "good"].index(r["label"])} for r in drawn]
    collate = DataCollatorWithPadding(tokenizer)
    oracle = LossOracle(
        AutoModelForSequenceClassification.from_pretrained(bert),
        [collate(rows[i : i + 4]) for i in range(0, 10, 4)],
        disable_tqdm=True,
    )
    root = result["models"][0]["parameters"] ** 0.5
    for row in result["models"][0]["neighborhood"]["m_sharpness"]:
        p, rho = (2.0, 0.1) if row["p"] == 2 else (float("inf"), 0.1 / root)
        found = m_sharpness(oracle, rho, m=4, p=p)
        assert row["rho"] == pytest.approx(rho)
        assert (row["mean"], row["max"]) == (pytest.approx(found.mean, rel=1e-4), pytest.approx(found.worst, rel=1e-4))


def test_same_seed_same_numbers_and_weights_untouched(bert, reviews, measure):
    before = (bert / "model.safetensors").read_bytes()
    options = ["--train_file", reviews, *FEW, "--surface_points", 2, "--line_points", 2, "--directions", 1, "--m", 5]
    first, again = (measure(bert, *options, out=name)["models"] for name in ("one", "two"))
    assert first == again and {"hessian", "neighborhood", "landscape"} <= first[0].keys()
    assert measure(bert, *options, "--seed", 1, out="three")["models"] != first
    assert (bert / "model.safetensors").read_bytes() == before


def test_as_a_user_starts_it(bert, reviews, tmp_path):
    out = tmp_path / "report"
    options = [*QUICK, *FEW, "--hessian", "--landscape", "--line_points", "3", "--surface_points", "3"]
    program = "from sam_hf.commands.console import main; main()"
    words = ["sharpness", "--model", str(bert), "--train_file", str(reviews), "--out", str(out), *options]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "λmax" in done.stdout and "about 30 products" in done.stdout
    assert {"sharpness.json", "sharpness.html", "loss_line.png", "spectral_density.svg"} <= {
        p.name for p in out.iterdir()
    }


def test_lora_folder(bert, reviews, measure, tmp_path):
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    config = LoraConfig(task_type=TaskType.SEQ_CLS, r=2, target_modules=["query"], init_lora_weights=False)
    model = get_peft_model(AutoModelForSequenceClassification.from_pretrained(bert), config).eval()
    model.save_pretrained(tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(bert)
    tokenizer.save_pretrained(tmp_path / "adapter")
    result = measure(tmp_path / "adapter", "--train_file", reviews, "--hessian", "--max_examples", 99, *FEW)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    rows = [line.rsplit(",", 1) for line in reviews.read_text().splitlines()[1:]]
    with torch.no_grad():
        logits = model(**tokenizer([text for text, _ in rows], padding=True, return_tensors="pt")).logits
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([int(label == "good") for _, label in rows]))
    assert result["models"][0]["parameters"] == trained
    assert result["models"][0]["loss"] == pytest.approx(float(loss), rel=1e-5)


def test_image_checkpoint(measure, tmp_path):
    from PIL import Image
    from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

    sizes = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    config = ViTConfig(image_size=8, patch_size=4, **sizes, id2label={0: "dark", 1: "light"})
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "vit")
    for i in range(6):
        name = ("dark", "light")[i % 2]
        (tmp_path / "images" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (10 * i + 120 * (i % 2),) * 3).save(tmp_path / "images" / name / f"{i}.png")
    result = measure(tmp_path / "vit", "--train_dir", tmp_path / "images", "--hessian", "--top", 2, *FEW)
    assert result["settings"]["examples"] == 6 and len(result["models"][0]["hessian"]["eigenvalues"]) == 2


@pytest.mark.distributed
def test_two_processes_measure_the_same(bert, reviews, measure, tmp_path):
    options = ["--train_file", str(reviews), "--hessian", "--top", "2", "--tolerance", "1e-3", *FEW]
    alone = measure(bert, *options)["models"][0]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29631", "-m"]
    program = [
        "sam_hf.commands.sharpness.command",
        "--model",
        str(bert),
        "--out",
        str(tmp_path / "both"),
        *QUICK,
        *options,
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    both = json.loads((tmp_path / "both" / "sharpness.json").read_text())["models"][0]
    assert both["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert both["hessian"]["eigenvalues"] == pytest.approx(alone["hessian"]["eigenvalues"], rel=1e-3)
    assert done.stdout.count("numbers written to") == 1


def test_what_is_finished_is_on_disk_when_a_run_stops(bert, reviews, measure, monkeypatch, tmp_path):
    from sam_hf.commands.sharpness import measurements

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(measurements, "hessian_trace", stopped)
    with pytest.raises(KeyboardInterrupt):
        measure(bert, "--train_file", reviews, "--hessian", *FEW)
    kept = json.loads((tmp_path / "report" / "sharpness.json").read_text())["models"][0]
    assert len(kept["hessian"]["eigenvalues"]) == 5 and "trace" not in kept["hessian"]


def test_options_from_a_file(bert, reviews, tmp_path):
    config = tmp_path / "measure.yaml"
    config.write_text(
        f"model: {bert}\ntrain_file: {reviews}\nneighborhood: true\nm: [2, 99]\nout: {tmp_path / 'report'}\n"
        "directions: 1\nmax_examples: 6\nuse_cpu: true\ndisable_tqdm: true\n"
    )
    main(["--config", str(config), "--rho", "0.2"])
    part = json.loads((tmp_path / "report" / "sharpness.json").read_text())["models"][0]["neighborhood"]
    assert part["rho"] == 0.2 and {row["m"] for row in part["m_sharpness"]} == {2}

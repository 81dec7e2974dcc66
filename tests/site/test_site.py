"""The documentation site builds without warnings and shows the same as the Markdown on GitHub and the docstrings."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")
griffe = pytest.importorskip("griffe")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr
    return folder


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", ROOT / "docs" / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def content(page: Path) -> str:
    """Return the text of a page without code."""
    article = re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    return re.sub(r"<(pre|code)\b.*?</\1>", "", article, flags=re.DOTALL)


def test_every_page_is_there_and_the_programs_are_not(site):
    expected = {page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md")}
    expected |= {Path("."), Path("CONTRIBUTING"), Path("CHANGELOG")}
    assert {page.parent.relative_to(site) for page in site.rglob("index.html")} == expected
    assert not list(site.rglob("*.py"))


def test_nothing_is_left_as_markdown(site):
    """Python's parser shows some tables, lists and links as text that GitHub shows correctly."""
    for page in site.rglob("index.html"):
        text = content(page)
        assert "<h1" in text
        assert not re.search(r"\|\s*-{3}", text), page
        assert not re.search(r"<p>[^<]*\n\s*[-*] ", text), page
        assert not re.search(r"\]\([^)]*\)", text), page
        assert "[]" not in text, page  # [`name`], without the code


def test_tables_and_links_from_the_root_are_those_of_the_site(site):
    home = content(site / "index.html")
    assert home.count("<table") >= 4
    assert 'href="methods/gsam/"' in home and 'href="distributed/"' in home
    assert 'href="../../#what-it-gains"' in content(site / "methods" / "sam" / "index.html")


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("index.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]*)"', page.read_text("utf-8"))
        assert not loaded, page


@pytest.mark.parametrize("package", ["sam_hf", "sam_hf.sharpness", "sam_hf.methods", "sam_hf.plots"])
def test_every_public_name_is_on_the_api_pages(site, package):
    names = set(importlib.import_module(package).__all__) - {"__version__"}
    page = (site / "api" / package.removeprefix("sam_hf.") / "index.html").read_text(encoding="utf-8")
    assert names
    for name in sorted(names):
        assert f'<h3 id="{package}.{name}"' in page, f"{package}.{name} is missing in docs/api"


def test_arguments_have_one_type_and_one_default_on_the_api_pages(site):
    page = (site / "api" / "sharpness" / "index.html").read_text(encoding="utf-8")
    arguments = re.findall(r'<li class="doc-section-item.*?(?=<div)', page, flags=re.DOTALL)
    texts = {" ".join(re.sub(r"<[^>]*>", "", text).split()) for text in arguments}
    assert "rho (float, default: 0.05 ) –" in texts
    assert "oracle (LossOracle) –" in texts
    assert not [text for text in texts if "optional" in text or "`" in text]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Args:\n    a (`float`, *optional*, defaults to `0.5`):\n        It.", "Args:\n    a (float):\n        It."),
        ("Args:\n    a (`str` or `list[str]`): it.", "Args:\n    a (str | list[str]): it."),
        ("Args:\n    a ([`~transformers.Trainer`]): it.", "Args:\n    a (transformers.Trainer): it."),
        ("Returns:\n    [`Trace`]", "Returns:\n    Trace:"),
        ("Returns:\n    `Tensor`: of shape `(n,)`.", "Returns:\n    Tensor: of shape `(n,)`."),
        ("See [`SAMMixin`].", "See [`SAMMixin`][sam_hf.SAMMixin]."),
        ("See [`~transformers.Trainer`].", "See `transformers.Trainer`."),
        ("See `f` (it is short): it.", "See `f` (it is short): it."),
    ],
)
def test_docstrings(hooks, text, expected):
    function = griffe.Function("f", docstring=griffe.Docstring(f"Do it.\n\n{text}"))
    hooks.Docstrings().on_object(obj=function)
    assert function.docstring.value == f"Do it.\n\n{expected}"


ADDRESS = "https://github.com/sam-hf/sam_hf"


@pytest.mark.parametrize(
    ("folder", "text", "expected"),
    [
        ("docs", "[a](../README.md#x)", "[a](index.md#x)"),
        ("docs/methods", "[a](../../README.md)", "[a](../index.md)"),
        ("docs/methods", "[a](../methods.md#b)", "[a](../methods.md#b)"),
        ("", f"[a]({ADDRESS}/blob/main/docs/a.md#b)", "[a](a.md#b)"),
        ("docs/methods", f"[a]({ADDRESS}/blob/main/README.md)", "[a](../index.md)"),
        (
            "",
            f"![a]({ADDRESS.replace('github', 'raw.githubusercontent')}/main/docs/pictures/a.png)",
            "![a](pictures/a.png)",
        ),
        ("", "[`LICENSE`](LICENSE)", f"[`LICENSE`]({ADDRESS}/blob/main/LICENSE)"),
        ("docs", "[a](../sam_hf/update)", f"[a]({ADDRESS}/tree/main/sam_hf/update)"),
        ("", f"[a]({ADDRESS}/issues/1)", f"[a]({ADDRESS}/issues/1)"),
        ("", "[a](https://example.org/docs/a.md)", "[a](https://example.org/docs/a.md)"),
        ("", "```\n[a](docs/b.md)\n```", "```\n[a](docs/b.md)\n```"),
    ],
)
def test_links(hooks, folder, text, expected):
    assert hooks.REPOSITORY == ADDRESS
    page_folder = folder.removeprefix("docs").strip("/")
    assert hooks._links(text, folder, page_folder) == expected

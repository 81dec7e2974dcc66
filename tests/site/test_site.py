"""The documentation site is built with warnings as errors, and reads as the same Markdown does on GitHub."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs")
pytest.importorskip("material")

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
    """What a page says, without code."""
    article = re.search(r"<article.*?</article>", page.read_text(encoding="utf-8"), flags=re.DOTALL)[0]
    return re.sub(r"<(pre|code)\b.*?</\1>", "", article, flags=re.DOTALL)


def test_every_page_is_there_and_the_programs_are_not(site):
    expected = {page.relative_to(ROOT / "docs").with_suffix("") for page in (ROOT / "docs").rglob("*.md")}
    expected |= {Path("."), Path("CONTRIBUTING"), Path("CHANGELOG")}
    assert {page.parent.relative_to(site) for page in site.rglob("index.html")} == expected
    assert not list(site.rglob("*.py"))


def test_nothing_is_left_as_markdown(site):
    """What Python's parser reads otherwise than GitHub's shows as text: tables, lists, links."""
    for page in site.rglob("index.html"):
        text = content(page)
        assert "<h1" in text
        assert not re.search(r"\|\s*-{3}", text), page
        assert not re.search(r"<p>[^<]*\n\s*[-*] ", text), page
        assert not re.search(r"\]\([^)]*\)", text), page


def test_tables_and_links_from_the_root_are_those_of_the_site(site):
    home = content(site / "index.html")
    assert home.count("<table") >= 4
    assert 'href="methods/gsam/"' in home and 'href="distributed/"' in home
    assert 'href="../../#what-it-gains"' in content(site / "methods" / "sam" / "index.html")


def test_nothing_is_fetched_from_elsewhere(site):
    for page in site.rglob("index.html"):
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]*)"', page.read_text("utf-8"))
        assert not loaded, page


@pytest.mark.parametrize(
    ("folder", "text", "expected"),
    [
        ("docs", "[a](../README.md#x)", "[a](index.md#x)"),
        ("docs/methods", "[a](../../README.md)", "[a](../index.md)"),
        ("docs/methods", "[a](../methods.md#b)", "[a](../methods.md#b)"),
        ("", "![a](docs/pictures/a.png)", "![a](pictures/a.png)"),
        ("", "[`LICENSE`](LICENSE)", "`LICENSE`"),
        ("", "[a](https://example.org/docs/a.md)", "[a](https://example.org/docs/a.md)"),
        ("", "```\n[a](docs/b.md)\n```", "```\n[a](docs/b.md)\n```"),
    ],
)
def test_links(hooks, folder, text, expected):
    page_folder = folder.removeprefix("docs").strip("/")
    assert hooks._links(text, folder, page_folder, None) == expected


def test_a_file_of_the_repository_is_linked_where_the_repository_has_an_address(hooks):
    turned = hooks._links("[a](../sam_hf/update/random_state.py)", "docs", "", "https://example.org/x/")
    assert turned == "[a](https://example.org/x/blob/HEAD/sam_hf/update/random_state.py)"

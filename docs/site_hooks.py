"""
Hooks that build the site from the Markdown and the docstrings of the repository.

MkDocs only reads the files in docs/. The hooks add README.md as the first page, add CONTRIBUTING.md and CHANGELOG.md,
and point each link to the place of its target in the site. A link to any other file of the repository leads to the
address that setup.cfg gives. `Docstrings` prepares the docstrings for the pages in docs/api.
"""

from __future__ import annotations

import configparser
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import griffe
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# File in the repository's root -> page of the site
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}

_SETUP = configparser.ConfigParser()
_SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
REPOSITORY = _SETUP["metadata"]["url"]
# Absolute links to files of the repository: to GitHub's page of a file or folder, or to the file itself (images)
_FILES = REPOSITORY.partition("github.com")[2] + "/(?:blob/|tree/)?main/"
ABSOLUTE = re.compile(r"https://(?:raw\.githubusercontent|github)\.com" + _FILES)
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", flags=re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_links(text, "", "")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    source = page.file.src_uri
    if source not in ROOT_PAGES.values():
        folder = posixpath.dirname(source)
        markdown = _links(markdown, posixpath.join("docs", folder), folder)
    # GitHub accepts two things that Python's parser only accepts after a blank line: Markdown that touches a comment,
    # and a list directly below a paragraph
    markdown = re.sub(r"^(<!-- [^\n]* -->)$", r"\n\1\n", markdown, flags=re.MULTILINE)
    return _outside_fences(
        markdown, lambda text: re.sub(r"^((?![-\s|#<]).+\n)(?=- )", r"\1\n", text, flags=re.MULTILINE)
    )


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    return "".join(part if part.startswith("```") else change(part) for part in FENCE.split(markdown))


def _links(text: str, folder: str, page_folder: str) -> str:
    """
    Return `text` with the links to files of the repository turned to where the site has them. Code fences are kept.

    Args:
        folder (`str`): where the file is in the repository; its relative links start there.
        page_folder (`str`): where its page is in the site.
    """

    def in_the_site(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        inside = ABSOLUTE.match(target)
        if not inside and (re.match(r"[a-z]+:", target) or target.startswith("/")):
            return match[0]
        path = target[inside.end() :] if inside else posixpath.normpath(posixpath.join(folder, target))
        if path in ROOT_PAGES:
            place = posixpath.relpath(ROOT_PAGES[path], page_folder or ".")
        elif path.startswith("docs/") and not path.endswith(".py"):
            place = posixpath.relpath(path.removeprefix("docs/"), page_folder or ".")
        else:
            place = f"{REPOSITORY}/{'tree' if (ROOT / path).is_dir() else 'blob'}/main/{path}"
        return f"{match['image']}[{match['text']}]({place}{anchor})"

    return _outside_fences(text, lambda part: LINK.sub(in_the_site, part))


class Docstrings(griffe.Extension):
    """
    Turns the docstrings, written in the style of transformers, into what Griffe's parser of Google style reads.

    An entry ``name (`str`, *optional*, defaults to `"a"`):`` keeps its type only, since the default is taken from the
    signature. [`name`] becomes a link where a page in docs/api describes the name, and code elsewhere.
    """

    ENTRY = re.compile(r"^(    \**\w+) \(([^\n]+?)\):", flags=re.MULTILINE)
    RETURNED = re.compile(r"^(Returns:\n    )\[?`([^`]+)`\]?:?", flags=re.MULTILINE)
    REFERENCE = re.compile(r"\[`~?([\w.]+)`\]")

    def __init__(self) -> None:
        pages = (page.read_text(encoding="utf-8") for page in (ROOT / "docs" / "api").glob("*.md"))
        paths = [path for text in pages for path in re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)]
        self.described = {path.rpartition(".")[2]: path for path in paths}

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = self.ENTRY.sub(self._entry, obj.docstring.value)
            text = self.RETURNED.sub(r"\1\2:", text)
            obj.docstring.value = self.REFERENCE.sub(self._reference, text)

    def _entry(self, match: re.Match[str]) -> str:
        kind = self.REFERENCE.sub(r"\1", match[2].partition(", *optional*")[0])
        return f"{match[1]} ({kind.replace('`', '').replace(' or ', ' | ')}):"

    def _reference(self, match: re.Match[str]) -> str:
        path = self.described.get(match[1])
        return f"[`{match[1]}`][{path}]" if path else f"`{match[1]}`"

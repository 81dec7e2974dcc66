"""
What the site needs beyond GitHub's view of the same Markdown: pages from the root, and links out of docs/.

MkDocs knows the files in docs/ alone. README.md becomes its first page, CONTRIBUTING.md and CHANGELOG.md become pages,
and links are turned to where their targets are in the site. A link to any other file of the repository leads to
`repo_url` where mkdocs.yml has one, and is plain text where not.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
# File in the repository's root -> page of the site
ROOT_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
LINK = re.compile(r"(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
FENCE = re.compile(r"(^```.*?^```$)", flags=re.DOTALL | re.MULTILINE)


def on_files(files: Files, config: Any) -> Files:
    for source, page in ROOT_PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_from_root(text, config.get("repo_url"))))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    source = page.file.src_uri
    if source not in ROOT_PAGES.values():
        folder = posixpath.join("docs", posixpath.dirname(source))
        markdown = _links(markdown, folder, posixpath.dirname(source), config.get("repo_url"))
    # Two things that GitHub reads and Python's parser does not, unless there is a blank line: Markdown that touches a
    # comment, and a list right below a paragraph
    markdown = re.sub(r"^(<!-- [^\n]* -->)$", r"\n\1\n", markdown, flags=re.MULTILINE)
    return _outside_fences(
        markdown, lambda text: re.sub(r"^((?![-\s|#<]).+\n)(?=- )", r"\1\n", text, flags=re.MULTILINE)
    )


def _outside_fences(markdown: str, change: Callable[[str], str]) -> str:
    return "".join(part if part.startswith("```") else change(part) for part in FENCE.split(markdown))


def _from_root(text: str, repo_url: str | None) -> str:
    text = re.sub(r'(src|srcset)="docs/', r'\1="', text)
    return _links(text, "", "", repo_url)


def _links(text: str, folder: str, page_folder: str, repo_url: str | None) -> str:
    """
    `text` with its relative links as the site has them; what stands in code fences is left alone.

    Args:
        folder (`str`): where the file is in the repository, from which its links count.
        page_folder (`str`): where its page is in the site.
    """

    def turned(match: re.Match[str]) -> str:
        target, anchor = match["target"], match["anchor"] or ""
        if re.match(r"[a-z]+:", target) or target.startswith("/"):
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path in ROOT_PAGES:
            page = ROOT_PAGES[path]
        elif path.startswith("docs/") and not path.endswith(".py"):
            page = path.removeprefix("docs/")
        elif repo_url:
            return f"{match['image']}[{match['text']}]({repo_url.rstrip('/')}/blob/HEAD/{path}{anchor})"
        else:
            return match["text"]
        return f"{match['image']}[{match['text']}]({posixpath.relpath(page, page_folder or '.')}{anchor})"

    return _outside_fences(text, lambda part: LINK.sub(turned, part))

"""The README agrees with the result files, the code and setup.cfg, and its links work outside the repository."""

from __future__ import annotations

import configparser
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

from sam_hf import SAMArguments

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
ADDRESS = SETUP["metadata"]["url"]


def test_tables_are_generated_from_the_committed_results():
    command = [sys.executable, "benchmarks/tables.py", "--check"]
    assert subprocess.run(command, cwd=ROOT).returncode == 0, "run python benchmarks/tables.py"


def test_every_argument_is_in_the_readme_with_its_default():
    for argument in fields(SAMArguments):
        default = f'"{argument.default}"' if isinstance(argument.default, str) else argument.default
        assert f"| `{argument.name}` | `{default}` |" in README


def test_links_of_the_readme_are_absolute_and_lead_to_files_of_the_repository():
    """Package indexes show the README too, and do not have the other files."""
    files = 0
    for image, target in re.findall(r"(!?)\[[^\]]*\]\(([^)\s]+)\)", README):
        assert target.startswith(("https://", "#")), target
        if not re.match(r"https://(raw\.githubusercontent|github)\.com/sam-hf/", target):
            continue
        address = ADDRESS.replace("github", "raw.githubusercontent") if image else ADDRESS
        kind, _, path = target.removeprefix(f"{address}/").partition("#")[0].partition("main/")
        place = ROOT / path
        assert path and place.exists(), target
        assert kind == ("" if image else "tree/" if place.is_dir() else "blob/"), target
        files += 1
    assert files >= 25
    assert not re.search(r'(?:src|srcset|href)="', README)


def test_the_addresses_of_the_project_agree():
    addresses = dict(line.split(" = ") for line in SETUP["metadata"]["project_urls"].strip().splitlines())
    assert addresses == {
        "Documentation": f"{ADDRESS}/tree/main/docs",
        "Source": ADDRESS,
        "Changelog": f"{ADDRESS}/blob/main/CHANGELOG.md",
        "Issues": f"{ADDRESS}/issues",
    }
    assert (ROOT / "docs").is_dir() and (ROOT / "CHANGELOG.md").is_file()
    assert f'repository-code: "{ADDRESS}"\n' in (ROOT / "CITATION.cff").read_text(encoding="utf-8")

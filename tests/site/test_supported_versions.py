"""The oldest supported versions are the same in setup.cfg, in the pages and in the constraints of the tests."""

from __future__ import annotations

import configparser
import re
from importlib.metadata import version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def oldest_supported() -> dict[str, Version]:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    bounds = {}
    for line in setup["options"]["install_requires"].split("\n"):
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            for clause in requirement.specifier:
                if clause.operator == ">=":
                    bounds[requirement.name] = Version(clause.version)
    return bounds


def pinned() -> dict[str, Version]:
    lines = (ROOT / "constraints-oldest.txt").read_text(encoding="utf-8").splitlines()
    return {name: Version(number) for name, number in re.findall(r"^([\w-]+)==(\S+)$", "\n".join(lines), re.MULTILINE)}


def test_the_constraints_are_the_lower_bounds():
    bounds = oldest_supported()
    assert set(pinned()) == {"torch", "transformers", "accelerate"}
    for name, number in pinned().items():
        assert number == bounds[name]


def test_this_environment_is_supported():
    for name, oldest in oldest_supported().items():
        assert Version(version(name)) >= oldest


def test_readme_and_quickstart_state_the_oldest_transformers():
    oldest = oldest_supported()["transformers"]
    for page in ("README.md", "docs/quickstart.md"):
        assert f"transformers {oldest.major}.{oldest.minor} or newer" in (ROOT / page).read_text(encoding="utf-8")

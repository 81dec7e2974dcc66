"""Hardware, versions and commit, for files of results and for bug reports."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__

PACKAGES = ("sam-hf", "torch", "transformers", "accelerate", "datasets", "evaluate")
OPTIONAL_PACKAGES = ("peft", "trl", "sentence-transformers", "timm", "torchvision", "matplotlib")


def environment(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """
    Return hardware, versions and commit as JSON. The version of a package that is not installed is `None`, and so is
    the commit if `sam_hf` does not run from a git checkout.

    Args:
        packages (`tuple[str]`, *optional*): names on PyPI of the packages.
    """
    import torch

    return {
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in packages},
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _version(package: str) -> str | None:
    try:
        return __version__ if package == "sam-hf" else version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
        return subprocess.run(command, cwd=root, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

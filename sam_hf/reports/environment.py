"""Hardware, versions and commit: what a result file says of where its numbers come from, and a bug report needs."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("sam-hf", "torch", "transformers", "accelerate", "datasets", "evaluate")
OPTIONAL_PACKAGES = ("peft", "trl", "sentence-transformers", "timm", "torchvision", "matplotlib")


def environment(packages: tuple[str, ...] = PACKAGES) -> dict[str, Any]:
    """
    As JSON. A package that is not installed is `None`, and so is the commit where `sam_hf` is no git checkout.

    Args:
        packages (`tuple[str]`, *optional*): whose versions are wanted, by their names on PyPI.
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
    if package == "sam-hf":
        from .. import __version__

        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=root, capture_output=True, text=True
        )
    except OSError:
        return None
    return answer.stdout.strip() or None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()

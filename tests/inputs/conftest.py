"""Folders of images, and the warnings about them."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from PIL import Image as PILImage


@pytest.fixture
def tree(tmp_path):
    """Write files by their paths, pictures where the ending says so, and return the folder."""

    def write(*paths: str, root: str = "images") -> Path:
        for path in paths:
            file = tmp_path / root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            if file.suffix in (".png", ".jpg", ".avif", ".gif"):
                PILImage.new("RGB", (4, 4)).save(file)
            else:
                file.write_bytes(b"nothing")
        return tmp_path / root

    return write


@pytest.fixture
def warnings(caplog):
    caplog.set_level(logging.WARNING, "sam_hf.inputs.image_folders")
    return lambda: [record.getMessage() for record in caplog.records]

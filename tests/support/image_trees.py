"""What the package reads from a folder of images."""

from __future__ import annotations

import os
from pathlib import Path

from sam_hf.inputs.image_folders import load_image_folder


def rows(folder: Path, **options) -> dict[str, str | None]:
    """Return the class of each image, by its path in `folder`."""
    dataset = load_image_folder(str(folder), **options)
    paths = [image["path"] for image in dataset.cast_column("image", _encoded())["image"]]
    names = [str(Path(path).relative_to(os.path.abspath(folder))) for path in paths]
    assert names == sorted(names)
    if "label" not in dataset.column_names:
        return dict.fromkeys(names)
    feature = dataset.features["label"]
    labels = [None if label is None else feature.int2str(label) for label in dataset["label"]]
    return dict(zip(names, labels, strict=True))


def _encoded():
    from datasets import Image

    return Image(decode=False)

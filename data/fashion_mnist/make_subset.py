"""
Makes the parquet files of this folder from the official Fashion-MNIST IDX files.

    python data/fashion_mnist/make_subset.py --source DIR

`DIR` holds `train-images-idx3-ubyte.gz` and the three other files of https://github.com/zalandoresearch/fashion-mnist
or of Debian's package `dataset-fashion-mnist`. The same seed gives the same images in the same order.
"""

from __future__ import annotations

import argparse
import gzip
import struct
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage

CLASSES = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]


def read_idx(path: Path) -> np.ndarray:
    """Read an IDX file of bytes: two zeros, the type 8, the number of dimensions, big-endian sizes, the data."""
    content = gzip.decompress(path.read_bytes())
    zero, kind, dimensions = struct.unpack(">HBB", content[:4])
    if zero != 0 or kind != 8:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{dimensions}I", content[4 : 4 + 4 * dimensions])
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def balanced_subset(labels: np.ndarray, per_class: int, rng: np.random.Generator) -> np.ndarray:
    """Return the positions of `per_class` examples of every class, in random order."""
    chosen = [rng.choice(np.flatnonzero(labels == label), per_class, replace=False) for label in range(len(CLASSES))]
    return rng.permutation(np.concatenate(chosen))


def make_split(source: Path, prefix: str, per_class: int, rng: np.random.Generator) -> Dataset:
    images = read_idx(source / f"{prefix}-images-idx3-ubyte.gz")
    labels = read_idx(source / f"{prefix}-labels-idx1-ubyte.gz")
    positions = balanced_subset(labels, per_class, rng)
    return Dataset.from_dict(
        {
            "image": [PILImage.fromarray(images[position]) for position in positions],
            "label": [int(labels[position]) for position in positions],
        },
        features=Features({"image": Image(), "label": ClassLabel(names=CLASSES)}),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the Fashion-MNIST subset of this folder.")
    parser.add_argument("--source", type=Path, required=True, help="folder with the four official *.gz files")
    parser.add_argument("--target", type=Path, default=Path(__file__).parent, help="default: this script's folder")
    parser.add_argument("--train_per_class", type=int, default=400)
    parser.add_argument("--test_per_class", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    rng = np.random.default_rng(args.seed)
    for split, prefix, per_class in (("train", "train", args.train_per_class), ("test", "t10k", args.test_per_class)):
        dataset = make_split(args.source, prefix, per_class, rng)
        path = args.target / f"{split}.parquet"
        dataset.to_parquet(path)
        print(f"{path}: {len(dataset)} images, {path.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()

"""Small data files of labelled sentences."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

WORDS = ["good", "fine", "great", "bad", "poor", "awful", "a", "the", "film", "plot", "was", "is"]


def write_sentences(file: Path, size: int, seed: int, flipped: bool = False) -> Path:
    """Write sentences with one word of judgement each. The label is 1 if this word is good, fine or great."""
    generator = np.random.default_rng(seed)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        for _ in range(size):
            label = int(generator.integers(2))
            word = WORDS[int(generator.integers(3)) + (0 if label else 3)]
            filler = [WORDS[i] for i in generator.integers(6, 12, size=4)]
            writer.writerow([" ".join([*filler[:2], word, *filler[2:]]), 1 - label if flipped else label])
    return file

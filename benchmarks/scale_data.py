"""What the measurements of scale are made on: text of any size, and a stream of any number of examples without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bertillery.engine.batch import PackedBatch, pack
from bertillery.engine.rng import Permutation, integers, key

BLOCK = 1 << 17
"""Examples of a block of the stream: about as many as a million sentences are."""
_ROW = np.dtype([("length", np.int64), ("key", np.uint64)])


def write_text(file: Path, megabytes: float) -> Path:
    """Documents of 2 to 8 paragraphs of 3 to 6 sentences of 6 to 20 words, until they fill the size."""
    rng = np.random.default_rng(0)
    syllables = [first + second for first in "bdfgklmnprst" for second in ("a", "e", "i", "o", "u", "an", "er", "is")]
    lexicon = np.unique(["".join(rng.choice(syllables, rng.integers(1, 5))) for _ in range(60_000)])
    rng.shuffle(lexicon)
    weights = 1 / np.arange(2, len(lexicon) + 2)
    bounds = np.cumsum(weights / weights.sum())
    size = 0
    with file.open("w", encoding="utf-8") as stream:
        while size < megabytes * 1e6:
            lines = []
            for _ in range(rng.integers(2, 9)):
                lengths = rng.integers(6, 21, rng.integers(3, 7))
                words = iter(lexicon[np.searchsorted(bounds, rng.random(lengths.sum())).clip(max=len(lexicon) - 1)])
                sentences = (" ".join(next(words) for _ in range(length)).capitalize() for length in lengths)
                lines.append(". ".join(sentences) + ".")
            size += stream.write("\n".join(lines) + "\n\n")
    return file


class Numbered:
    """A source of as many examples as asked for, which are numbers: rows by arithmetic, and no text."""

    def __init__(self, num_examples: int) -> None:
        self.num_examples, self.num_blocks = num_examples, -(-num_examples // BLOCK)

    def examples(self, epoch: int, block: int) -> np.ndarray:
        index = np.arange(block * BLOCK, min((block + 1) * BLOCK, self.num_examples))
        number = Permutation(self.num_examples, 1, epoch)(index)
        rows = np.empty(len(index), _ROW)
        rows["key"], rows["length"] = key(1, epoch, number), 8 + integers(121, epoch, number)
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        ids = np.zeros(int(rows["length"].sum()), np.int64)
        return pack(ids, ids, rows["length"], targets={}, counts={"examples": len(rows)})

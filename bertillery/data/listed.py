"""Texts in memory as token ids, and sources of examples that are all listed there.

Legend: N examples or texts, T tokens of some of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.engine.batch import ranges
from bertillery.engine.rng import key
from bertillery.engine.schedule import EpochSize
from bertillery.models.frame import text_backend

ROW = np.dtype([("index", np.int64), ("length", np.int64), ("key", np.uint64)])
"""An example: its number, its tokens, and what its randomness is keyed by."""


@dataclass(frozen=True)
class Tokens:
    """Texts as ids, end to end."""

    ids: np.ndarray
    """int32, all of them."""
    lengths: np.ndarray
    """int64 (N,), of each text."""

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each text begins, int64 (N,)."""
        return np.cumsum(self.lengths) - self.lengths

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (T,) int64 of some texts, end to end, and their lengths."""
        lengths = self.lengths[index]
        return self.ids[np.repeat(self.starts[index], lengths) + ranges(lengths)].astype(np.int64), lengths


def end_to_end(texts: Sequence[Sequence[int]]) -> Tokens:
    """The ids of texts as one array."""
    lengths = np.array([len(ids) for ids in texts], dtype=np.int64)
    return Tokens(np.fromiter((i for ids in texts for i in ids), np.int32, count=int(lengths.sum())), lengths)


def encode(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each text, without special tokens."""
    found = text_backend(tokenizer).encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in found]


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Token ids of texts, without special tokens."""
    return end_to_end(encode(texts, tokenizer))


class ListedExamples:
    """A source (:class:`bertillery.engine.objective.Source`) whose epochs all have the same examples."""

    num_blocks = 1
    row = ROW
    """What describes an example; subclasses add fields."""
    about: str = ""
    """What a run says of them."""

    def __init__(self, lengths: np.ndarray, labels: np.ndarray | None, *, cut: int, seed: int) -> None:
        """``lengths`` (N,) are the tokens of each example; ``cut`` of them are not whole."""
        self.lengths, self.labels, self.num_cut, self.seed = lengths, labels, cut, seed

    @property
    def num_examples(self) -> int:
        """Examples of an epoch."""
        return len(self.lengths)

    def epoch_size(self) -> EpochSize:
        """Examples and tokens of every epoch."""
        return EpochSize(self.num_examples, int(self.lengths.sum()))

    def examples(self, epoch: int, block: int) -> Any:
        """Rows of ``row`` (N,) in the order of the split."""
        rows = np.zeros(self.num_examples, self.row)
        rows["index"] = np.arange(len(rows))
        rows["key"] = key(self.seed, epoch, np.arange(len(rows)))
        rows["length"] = self.lengths
        return rows

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """How many rows of outputs each of these examples has: one."""
        return np.ones(len(index), np.int64)

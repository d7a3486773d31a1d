"""Sources of pretraining examples: a plan by blocks of documents, and the packed batch of some of its rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.engine.batch import PackedBatch, ranges
from bertillery.engine.rng import Permutation
from bertillery.engine.schedule import EpochSize
from bertillery.models.frame import check_pretraining_frame
from pretrain.pairs import Tokens

_BLOCK_SENTENCES = 1 << 20


@dataclass(frozen=True)
class FlatExamples:
    """Examples with their special tokens, end to end, before masking. Legend: B examples, T tokens."""

    input_ids: np.ndarray
    """(T,)"""
    token_type_ids: np.ndarray
    """(T,)"""
    lengths: np.ndarray
    """(B,)"""
    special: np.ndarray
    """(T,) true for [CLS] and [SEP]."""
    keys: np.ndarray
    """(B,) uint64"""
    labels: np.ndarray
    """(B,)"""


class DocumentSource:
    """Examples drawn from a prepared corpus.

    ``draw(documents, epoch)`` gives the rows of some documents, ``finish(examples)`` masks and packs. An epoch visits
    all documents once, in a keyed permutation, in blocks of about a million sentences.
    """

    def __init__(
        self,
        tokens: Tokens,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        draw: Callable[[np.ndarray, int], np.ndarray],
        finish: Callable[[FlatExamples], PackedBatch],
        num_texts: int = 2,
    ) -> None:
        """``num_texts`` is 1 where no example has a B. ``ConfigError`` where the tokenizer frames texts otherwise."""
        check_pretraining_frame(tokenizer, num_texts)
        self.tokens, self.seed = tokens, seed
        self._cls_id, self._sep_id = cast(int, tokenizer.cls_token_id), cast(int, tokenizer.sep_token_id)
        self._draw, self._finish = draw, finish
        self.num_documents = len(tokens.documents) - 1
        sentences = len(tokens.sentences) - 1
        self._block_size = max(1, min(self.num_documents, _BLOCK_SENTENCES * self.num_documents // max(1, sentences)))
        self.num_blocks = -(-self.num_documents // self._block_size)

    def examples(self, epoch: int, block: int) -> np.ndarray:
        """Rows of ``ROW`` for the block's documents."""
        index = np.arange(block * self._block_size, min((block + 1) * self._block_size, self.num_documents))
        return self._draw(Permutation(self.num_documents, self.seed, epoch)(index), epoch)

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """Lay out, mask and pack rows of a plan."""
        return self._finish(self.lay_out(rows))

    def lay_out(self, rows: np.ndarray) -> FlatExamples:
        """``[CLS] A [SEP]`` or ``[CLS] A [SEP] B [SEP]`` for each row, with segment 1 for B and its [SEP]."""
        a, b = rows["a_length"].astype(np.int64), rows["b_length"].astype(np.int64)
        lengths = rows["length"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        total = int(lengths.sum())
        ids = np.full(total, self._sep_id, np.int64)
        special = np.ones(total, dtype=bool)
        ids[starts] = self._cls_id
        for place, source, size in ((starts + 1, rows["a_start"], a), (starts + a + 2, rows["b_start"], b)):
            step = ranges(size)
            cells = np.repeat(place, size) + step
            ids[cells] = self.tokens.ids[np.repeat(source, size) + step]
            special[cells] = False
        types = np.repeat(np.tile([0, 1], len(rows)), np.stack([lengths - b - (b > 0), b + (b > 0)], 1).ravel())
        return FlatExamples(ids, types, lengths, special, rows["key"], rows["label"].astype(np.int64))


def epoch_size(source: DocumentSource) -> EpochSize:
    """An epoch of a source: the first one where the corpus is one block, else estimated from the first block's share
    of it."""
    rows, blocks = source.examples(0, 0), source.num_documents / source._block_size
    return EpochSize(len(rows) * blocks, int(rows["length"].sum(dtype=np.int64)) * blocks)

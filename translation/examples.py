"""Pairs of sentences as examples of two streams.

A source is its pieces and the end-of-sequence token. The decoder reads the padding token and the target's pieces, and
predicts the pieces and the end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.engine.batch import PackedBatch, pack_pairs, ranges
from bertillery.engine.rng import key, uniform
from bertillery.engine.schedule import EpochSize
from bertillery.models.frame import text_backend
from translation.teaching import TeachingSection

ROW = np.dtype([("index", np.int64), ("length", np.int64), ("key", np.uint64), ("forced", np.float64)])
"""An example: its number, its tokens of both sides, what its randomness is keyed by, and the probability with which the
reference is fed."""


@dataclass(frozen=True)
class Sentences:
    """Sentences as ids, end to end, each with room for one special token."""

    ids: np.ndarray
    """int32, pieces and end-of-sequence tokens."""
    lengths: np.ndarray
    """int64, of each sentence, the end-of-sequence token included."""

    @property
    def starts(self) -> np.ndarray:
        """Where each sentence begins, int64."""
        return np.cumsum(self.lengths) - self.lengths

    def take(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Ids (T,) of some sentences, end to end, and their lengths."""
        lengths = self.lengths[index]
        return self.ids[np.repeat(self.starts[index], lengths) + ranges(lengths)].astype(np.int64), lengths


class TranslationExamples:
    """A source (:class:`bertillery.engine.objective.Source`) of sentence pairs, or of sources without a reference."""

    num_blocks = 1

    def __init__(
        self,
        sources: Sequence[str],
        references: Sequence[str] | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int | None,
        seed: int,
        drop: bool = False,
    ) -> None:
        """Sentences of more than ``max_length`` tokens are cut, or with ``drop`` left out with their partner;
        :attr:`num_cut` says how many. Raises ``InputError`` where nothing is left."""
        self.tokenizer, self.seed = tokenizer, seed
        self.labels = None if references is None else np.array([*references, None], dtype=object)[:-1]
        backend, end = text_backend(tokenizer), cast(int, tokenizer.eos_token_id)

        def pieces(texts: Sequence[str]) -> list[list[int]]:
            return [found.ids for found in backend.encode_batch_fast(list(texts), add_special_tokens=False)]

        found = [pieces(sources), [[]] * len(sources) if references is None else pieces(references)]
        too_long = [max_length is not None and max(map(len, pair)) >= max_length for pair in zip(*found, strict=True)]
        self.num_cut = sum(too_long)
        kept = [number for number, long in enumerate(too_long) if not (drop and long)]
        if not kept:
            raise InputError(
                f"all {len(sources):,} sentence pairs are longer than the {max_length} positions of the model; give "
                "model.max_position_embeddings, or shorter sentences"
            )
        self.source, self.target = (
            _laid_out([[*side[number][: (max_length or len(side[number])) - 1], end] for number in kept])
            for side in found
        )
        self.lengths = self.source.lengths + self.target.lengths
        self.teaching: TeachingSection | None = None
        """How often the reference is fed in training; always where there is none."""

    @property
    def num_examples(self) -> int:
        """Pairs of an epoch."""
        return len(self.lengths)

    def epoch_size(self) -> EpochSize:
        """Pairs and tokens, of both sides, of every epoch."""
        return EpochSize(self.num_examples, int(self.lengths.sum()))

    def examples(self, epoch: int, block: int) -> np.ndarray:
        """Rows of ``ROW`` in the order of the split."""
        rows = np.zeros(self.num_examples, ROW)
        rows["index"] = np.arange(len(rows))
        rows["key"] = key(self.seed, epoch, np.arange(len(rows)))
        rows["length"], rows["forced"] = self.lengths, 1.0
        return rows

    def sample_step(self, rows: np.ndarray, step: int | None) -> np.ndarray:
        """The rows with the step's probability that the reference is fed; 1 where nothing is trained."""
        if step is None or self.teaching is None:
            return rows
        rows = rows.copy()
        rows["forced"] = self.teaching.share(step)
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """Streams ``source`` and ``target`` with the targets ``next_ids`` (T,), and ``forced`` (T,) bool unless the
        reference is always fed; counts ``target_tokens`` and ``sequences``."""
        source, source_lengths = self.source.take(rows["index"])
        following, lengths = self.target.take(rows["index"])
        entering = np.roll(following, 1)
        entering[np.cumsum(lengths) - lengths] = cast(int, self.tokenizer.pad_token_id)
        targets = {"next_ids": following}
        if (rows["forced"] < 1).any():
            coins = uniform(np.repeat(rows["key"], lengths), ranges(lengths))
            targets["forced"] = (coins < np.repeat(rows["forced"], lengths)) | (ranges(lengths) == 0)
        counts = {"target_tokens": len(following), "sequences": len(rows)}
        return pack_pairs(source, source_lengths, entering, lengths, targets=targets, counts=counts)

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """One translation each."""
        return np.ones(len(index), np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a translation's ids, which end with the end-of-sequence token or are cut."""
        return str(cast(Any, self.tokenizer).decode([*ids], skip_special_tokens=True))


def _laid_out(sentences: list[list[int]]) -> Sentences:
    lengths = np.array([len(ids) for ids in sentences], dtype=np.int64)
    return Sentences(np.fromiter((i for ids in sentences for i in ids), np.int32, count=int(lengths.sum())), lengths)

"""Pairs of sentences as examples of two streams.

A source is its pieces and the end-of-sequence token. The decoder reads the padding token and the target's pieces, and
predicts the pieces and the end-of-sequence token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import InputError
from bertillery.data.listed import ROW, ListedExamples, encode, end_to_end
from bertillery.engine.batch import PackedBatch, pack_pairs, ranges
from bertillery.engine.rng import uniform
from translation.teacher_forcing import TeacherForcingSection


class TranslationExamples(ListedExamples):
    """Sentence pairs, or sources without a reference."""

    row = np.dtype([*ROW.descr, ("unforced", np.float64)])
    """``unforced`` is the probability with which the decoder reads its own token instead of the reference."""

    def __init__(
        self,
        sources: Sequence[str],
        references: Sequence[str] | None,
        tokenizer: PreTrainedTokenizerBase,
        target_tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        max_length: int,
        seed: int,
        drop: bool = False,
    ) -> None:
        """``tokenizer`` is for both sides unless the target has its own.

        Sentences of more than ``max_length`` tokens are cut, or with ``drop`` left out with their partner;
        :attr:`num_cut` says how many. Raises ``InputError`` where nothing is left.
        """
        self.tokenizer, self.target_tokenizer = tokenizer, target_tokenizer or tokenizer
        end = cast(int, tokenizer.eos_token_id)
        targets = [[]] * len(sources) if references is None else encode(references, self.target_tokenizer)
        found = [encode(sources, tokenizer), targets]
        too_long = [max(map(len, pair)) >= max_length for pair in zip(*found, strict=True)]
        kept = [number for number, long in enumerate(too_long) if not (drop and long)]
        if not kept:
            raise InputError(
                f"all {len(sources):,} sentence pairs have more than {max_length} tokens on a side; give a larger "
                "train.phases.0.sequence_length, or shorter sentences"
            )
        self.source, self.target = (
            end_to_end([[*side[number][: max_length - 1], end] for number in kept]) for side in found
        )
        labels = None if references is None else np.array([*references, None], dtype=object)[:-1][kept]
        super().__init__(self.source.lengths + self.target.lengths, labels, cut=sum(too_long), seed=seed)
        self.teacher_forcing: TeacherForcingSection | None = None
        """How often the reference is fed in training; always where there is none."""

    def sample_step(self, rows: np.ndarray, step: int | None) -> np.ndarray:
        """The rows with the step's probability that the reference is not fed; 0 where nothing is trained."""
        if step is None or self.teacher_forcing is None:
            return rows
        rows = rows.copy()
        rows["unforced"] = 1 - self.teacher_forcing.share(step)
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """Streams ``source`` and ``target`` with the targets ``next_ids`` (T,), and ``forced`` (T,) bool unless it is
        True everywhere; counts ``target_tokens`` and ``sequences``."""
        source, source_lengths = self.source.take(rows["index"])
        following, lengths = self.target.take(rows["index"])
        entering = np.roll(following, 1)
        entering[np.cumsum(lengths) - lengths] = cast(int, self.tokenizer.pad_token_id)
        targets = {"next_ids": following}
        if (rows["unforced"] > 0).any():
            coins = uniform(np.repeat(rows["key"], lengths), ranges(lengths))
            forced = (coins >= np.repeat(rows["unforced"], lengths)) | (ranges(lengths) == 0)
            if not forced.all():  # known here, where nobody waits for a GPU
                targets["forced"] = forced
        counts = {"target_tokens": len(following), "sequences": len(rows)}
        return pack_pairs(source, source_lengths, entering, lengths, targets=targets, counts=counts)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a translation's ids, which end with the end-of-sequence token or are cut."""
        return str(cast(Any, self.target_tokenizer).decode([*ids], skip_special_tokens=True))

"""DistilBERT's masking: how many tokens of a step are predicted, and rare ones more often.

After ``lm_seqs_dataset.py`` and ``distiller.py`` of DistilBERT's released code. Legend: T tokens of some rows, V
vocabulary.
"""

from __future__ import annotations

from typing import cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from engine.batch import PackedBatch, pack, ranges
from engine.config import ConfigError
from engine.keyed import key, uniform
from engine.load import vocabulary_size
from pretrain.examples import DocumentSource, FlatExamples
from pretrain.masking import corrupt
from pretrain.pairs import ROW, Tokens, full_segments

MASKED_ROW = np.dtype([*ROW.descr, ("threshold", np.float64)])
"""A row of :mod:`pretrain.pairs`, and how late in the order of its step a token may come and still be predicted."""
_PLACE = 301
"""What a draw is for; part of its key."""
_SHORTEST = 12
_UNKNOWN = 0.5
"""A segment with such a share of unknown words, or a larger one, is left out."""
_SCANNED = 1 << 24


def rarity_weights(unigrams: np.ndarray, smoothing: float) -> np.ndarray:
    """Relative probability (V,) of each piece to be predicted: its count in the text to the power of -``smoothing``."""
    return np.maximum(unigrams, 1).astype(np.float64) ** -smoothing


class RareMaskedSource(DocumentSource):
    """Segments of whole sentences, masked: exactly ``ceil(rate * tokens)`` of a step, special tokens counted.

    They are drawn without replacement, a token with a probability proportional to its weight; special tokens never,
    wherever they stand, and an unknown word's is one. The draw is over the whole step, as the original's is over its
    batch, and does not depend on how the step is shared out: every token has a keyed exponential time of its weight,
    the earliest are taken (Efraimidis and Spirakis 2006), and :meth:`settle` writes the time of the last one into the
    rows. Segments of less than 12 tokens or with half of them unknown are left out, and ``ConfigError`` is
    raised where that leaves none. The original groups examples by length, for the sake of padding, which packed batches
    have not.
    """

    def __init__(
        self,
        tokens: Tokens,
        tokenizer: PreTrainedTokenizerBase,
        *,
        weights: np.ndarray,
        rate: float,
        sequence_length: int,
        seed: int,
    ) -> None:
        super().__init__(
            tokens,
            tokenizer,
            seed=seed,
            draw=lambda documents, epoch: full_segments(
                tokens, documents, sequence_length=sequence_length, seed=seed, epoch=epoch
            ),
            finish=_refuse,
            num_texts=1,
        )
        self._weights, self._rate = weights.copy(), rate
        self._weights[tokenizer.all_special_ids] = 0
        self._mask_id, self._vocab_size = cast(int, tokenizer.mask_token_id), vocabulary_size(tokenizer)
        starts = range(0, len(tokens.ids), _SCANNED)
        found = [
            start + np.flatnonzero(tokens.ids[start : start + _SCANNED] == tokenizer.unk_token_id) for start in starts
        ]
        self._unknown = np.concatenate([np.empty(0, np.int64), *found])
        if not any(len(self.plan(0, block)) for block in range(self.num_blocks)):
            raise ConfigError(
                f"no segment of the text, cut to a sequence_length of {sequence_length}, has {_SHORTEST} tokens of "
                "which more than half are known; give longer sequences or documents, or a teacher that knows the "
                "language"
            )

    def plan(self, epoch: int, block: int) -> np.ndarray:
        """Rows of ``MASKED_ROW``."""
        found = super().plan(epoch, block)
        ends = found["a_start"] + found["a_length"]
        unknown = np.searchsorted(self._unknown, ends) - np.searchsorted(self._unknown, found["a_start"])
        found = found[(found["length"] >= _SHORTEST) & (unknown < _UNKNOWN * found["length"])]
        rows = np.zeros(len(found), MASKED_ROW)
        for name in ROW.names or ():
            rows[name] = found[name]
        return rows

    def settle(self, rows: np.ndarray) -> np.ndarray:
        """Which tokens of the step are predicted, as one threshold for all of its rows."""
        examples = self.lay_out(rows)
        times = self._times(examples)
        wanted = min(int(np.ceil(self._rate * len(times))), int(np.isfinite(times).sum()))
        rows = rows.copy()
        rows["threshold"] = np.partition(times, wanted - 1)[wanted - 1] if wanted else -1
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """Rows of a step, masked; targets are those of pretraining (:mod:`pretrain.masking`)."""
        examples = self.lay_out(rows)
        chosen = self._times(examples) <= np.repeat(rows["threshold"], examples.lengths)
        positions = np.flatnonzero(chosen)
        masked = corrupt(
            examples.input_ids,
            positions,
            _token_keys(examples)[positions],
            mask_id=self._mask_id,
            vocab_size=self._vocab_size,
        )
        return pack(
            masked.input_ids,
            examples.token_type_ids,
            examples.lengths,
            targets={"masked_positions": positions, "masked_ids": masked.labels},
            counts={"masked": len(positions)},
        )

    def _times(self, examples: FlatExamples) -> np.ndarray:
        """(T,) float64: when each token's turn to be predicted comes; never for special tokens."""
        weights, turns = self._weights[examples.input_ids], -np.log1p(-uniform(_token_keys(examples), _PLACE))
        return np.divide(turns, weights, out=np.full(len(turns), np.inf), where=weights > 0)


def _token_keys(examples: FlatExamples) -> np.ndarray:
    return key(np.repeat(examples.keys, examples.lengths), ranges(examples.lengths))


def _refuse(_: FlatExamples) -> PackedBatch:
    raise AssertionError("rows of a step are settled before they are masked")

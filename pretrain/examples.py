"""Sources of pretraining examples: rows drawn for a block of documents, and the packed batch of some of the rows."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from bertillery.data.tokenizer import is_unigram
from bertillery.engine.batch import PackedBatch, ranges
from bertillery.engine.rng import Permutation
from bertillery.engine.schedule import EpochSize
from bertillery.models.frame import check_pretraining_frame
from bertillery.system.printable import printable
from pretrain.pairs import PairLabel, Tokens

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

    An epoch visits all documents once, in a keyed permutation, in blocks of about a million sentences.
    """

    def __init__(
        self,
        tokens: Tokens,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int,
        draw: Callable[..., np.ndarray],
        finish: Callable[[FlatExamples], PackedBatch],
        num_texts: int = 2,
        label: PairLabel | None = None,
    ) -> None:
        """``draw(tokens, documents, seed=, epoch=)`` gives the rows of some documents (:mod:`pretrain.pairs`), and
        ``finish`` masks and packs their examples.

        ``num_texts`` is 1 where no example has a second segment. Raises ``ConfigError`` for a tokenizer with other
        special tokens around its texts than [CLS] and [SEP].
        """
        check_pretraining_frame(tokenizer, num_texts)
        self.tokens, self.seed, self.label = tokens, seed, label
        self._cls_id, self._sep_id = cast(int, tokenizer.cls_token_id), cast(int, tokenizer.sep_token_id)
        self._draw, self._finish = draw, finish
        self.num_documents = len(tokens.documents) - 1
        sentences = len(tokens.sentences) - 1
        self._block_size = max(1, min(self.num_documents, _BLOCK_SENTENCES * self.num_documents // max(1, sentences)))
        self.num_blocks = -(-self.num_documents // self._block_size)

    def examples(self, epoch: int, block: int) -> np.ndarray:
        """Rows of ``pretrain.pairs.ROW`` for the block's documents."""
        index = np.arange(block * self._block_size, min((block + 1) * self._block_size, self.num_documents))
        documents = Permutation(self.num_documents, self.seed, epoch)(index)
        return self._draw(self.tokens, documents, seed=self.seed, epoch=epoch)

    def epoch_size(self) -> EpochSize:
        """Examples and tokens of an epoch: the first epoch's where the corpus is one block, else an estimate from the
        first block."""
        rows, blocks = self.examples(0, 0), self.num_documents / self._block_size
        return EpochSize(len(rows) * blocks, int(rows["length"].sum(dtype=np.int64)) * blocks)

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """Lay out, mask and pack some rows."""
        examples = self.lay_out(rows)
        batch = self._finish(examples)
        if self.label is None:
            return batch
        targets = {**batch.targets, self.label.target: torch.from_numpy(examples.labels)}
        return replace(batch, targets=targets, counts={**batch.counts, "pairs": len(rows)})

    def lay_out(self, rows: np.ndarray) -> FlatExamples:
        """``[CLS] A [SEP]`` or ``[CLS] A [SEP] B [SEP]`` for each row, with segment 1 for B and its [SEP]."""
        b, lengths = rows["b_length"].astype(np.int64), rows["length"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        total = int(lengths.sum())
        ids = np.full(total, self._sep_id, np.int64)
        special = np.ones(total, dtype=bool)
        ids[starts] = self._cls_id
        for cells, tokens in self._placed(rows):
            ids[cells] = self.tokens.ids[tokens]
            special[cells] = False
        types = np.repeat(np.tile([0, 1], len(rows)), np.stack([lengths - b - (b > 0), b + (b > 0)], 1).ravel())
        return FlatExamples(ids, types, lengths, special, rows["key"], rows["label"].astype(np.int64))

    def aligned(self, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
        """``values``, one for each token of the corpus, where these lie in the examples, (T,); 0 for special tokens."""
        found = np.zeros(int(rows["length"].sum(dtype=np.int64)), np.int64)
        for cells, tokens in self._placed(rows):
            found[cells] = values[tokens]
        return found

    def _placed(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Where the tokens of the first and of the second segments lie in the examples, and in the corpus."""
        a, b = rows["a_length"].astype(np.int64), rows["b_length"].astype(np.int64)
        lengths = rows["length"].astype(np.int64)
        starts = np.cumsum(lengths) - lengths
        for place, source, size in ((starts + 1, rows["a_start"], a), (starts + a + 2, rows["b_start"], b)):
            step = ranges(size)
            yield np.repeat(place, size) + step, np.repeat(source, size) + step

    def show(self, batch: PackedBatch, tokenizer: PreTrainedTokenizerBase) -> str:
        """The first example of a batch as text (:func:`show_example`)."""
        return show_example(batch, tokenizer, self.label)


def show_example(batch: PackedBatch, tokenizer: PreTrainedTokenizerBase, label: PairLabel | None = None) -> str:
    """The first example of a batch as text: masks, if there are any, as ``[MASK]<-original``, and the pair's label.

    ``##`` marks a piece that continues a word and could not be joined to it.
    """
    end = int(batch.input.offsets[1])
    tokens, masked = _pieces(tokenizer, batch.input.ids[:end]), {}
    if "masked_positions" in batch.targets:
        originals, places = _pieces(tokenizer, batch.targets["masked_ids"]), batch.targets["masked_positions"].tolist()
        masked = {place: original for place, original in zip(places, originals, strict=True) if place < end}
    alone = {place for place, token in enumerate(tokens) if token in tokenizer.all_special_tokens} | masked.keys()
    words: list[str] = []
    for place, token in enumerate(tokens):
        if place in masked:
            words.append(f"{token}<-{masked[place]}" if token != masked[place] else f"{token}<-kept")
        elif token.startswith("##") and place - 1 not in alone:
            words[-1] = words[-1].removeprefix("▁") + token[2:]
        else:
            words.append(token)
    # An uncased vocabulary holds Hangul decomposed; people read it composed.
    text = printable(unicodedata.normalize("NFC", " ".join(words)))
    lines = [text, f"{end} tokens" + (f", {len(masked)} predicted" if masked else "")]
    if label is not None:
        lines.append(f"label: {label.meanings[int(batch.targets[label.target][0])]}")
    return "\n".join(f"  {line}" for line in lines)


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor) -> list[str]:
    """The tokens in WordPiece's notation, which marks what continues a word; Unigram marks what begins one."""
    tokens = [*tokenizer.convert_ids_to_tokens(ids.tolist())]
    if not is_unigram(tokenizer):
        return tokens
    special = set(tokenizer.all_special_tokens)
    return [t if t in special else t[1:] or t if t.startswith("▁") else f"##{t}" for t in tokens]

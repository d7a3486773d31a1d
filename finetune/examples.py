"""A split's texts as token ids, its examples as sequences of them, and the packed batch of some examples.

Legend: N examples, S sequences of all of them, P texts of a sequence, B sequences and T tokens of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.engine.batch import PackedBatch, pack, ranges
from bertillery.engine.rng import key
from bertillery.engine.schedule import EpochSize
from bertillery.models.frame import Template, template, text_backend

ROW = np.dtype([("index", np.int64), ("length", np.int64), ("key", np.uint64)])
"""An example: its number, its tokens, and what its randomness is keyed by."""


@dataclass(frozen=True)
class Tokens:
    """Texts as ids, end to end."""

    ids: np.ndarray
    """int32, all of them."""
    lengths: np.ndarray
    """int64, of each text."""

    @property
    def starts(self) -> np.ndarray:
        """Where each text begins, int64."""
        return np.cumsum(self.lengths) - self.lengths


def tokenize(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> Tokens:
    """Token ids of texts, without special tokens."""
    encodings = text_backend(tokenizer).encode_batch_fast(list(texts), add_special_tokens=False)
    encoded = [encoding.ids for encoding in encodings]
    lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
    return Tokens(np.fromiter((i for ids in encoded for i in ids), np.int32, count=int(lengths.sum())), lengths)


def truncated(lengths: np.ndarray, room: int) -> np.ndarray:
    """Tokens kept of each text (P, S), so that a sequence has at most ``room`` of them.

    Of a pair the longer one loses its last token until both fit, the second one where they are of one length
    (``_truncate_seq_pair`` of BERT's ``run_classifier.py``).
    """
    if len(lengths) == 1:
        return np.minimum(lengths, room)
    first, second = lengths
    first = np.minimum(first, np.maximum(room - second, -(-room // 2)))
    return np.stack([first, np.minimum(second, room - first)])


@dataclass(frozen=True)
class Sequences:
    """Sequences of one text or two, as ranges of tokens."""

    template: Template
    ids: np.ndarray
    """Tokens of all texts."""
    starts: np.ndarray
    """Where each text of a sequence begins (P, S)."""
    sizes: np.ndarray
    """How many tokens of it are taken (P, S)."""

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence (S,), special tokens included."""
        return self.sizes.sum(0) + self.template.size

    def lay_out(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and token types of some sequences, special tokens included, end to end: (T,) each."""
        lengths = self.lengths[which]
        place = np.cumsum(lengths) - lengths
        ids, types = np.empty((2, int(lengths.sum())), np.int64)
        around = zip(self.template.parts, self.template.types, strict=True)
        for part, (special, special_types) in enumerate(around):
            cells = place[:, None] + np.arange(len(special))
            ids[cells], types[cells] = special, special_types
            place = place + len(special)
            if part == len(self.starts):
                break
            size = self.sizes[part, which]
            step = ranges(size)
            cells = np.repeat(place, size) + step
            types[cells] = self.template.text_types[part]
            ids[cells] = self.ids[np.repeat(self.starts[part, which], size) + step]
            place = place + size
        return ids, types


class Examples(ABC):
    """A source (:class:`bertillery.engine.objective.Source`) of examples of one or several sequences, with labels."""

    num_blocks = 1

    def __init__(
        self, sequences: Sequences, per_example: np.ndarray, labels: np.ndarray | None, *, cut: int, seed: int
    ) -> None:
        """Example n has the next ``per_example[n]`` sequences and ``labels[n]``; ``cut`` of them are not whole."""
        self.sequences, self.labels, self.seed = sequences, labels, seed
        self.num_cut = cut
        self.per_example = per_example
        self._first = np.cumsum(per_example) - per_example
        self.lengths = np.add.reduceat(sequences.lengths, self._first) if len(per_example) else per_example
        """Tokens of each example (N,), of all its sequences."""

    @property
    def num_examples(self) -> int:
        """Examples of an epoch."""
        return len(self.per_example)

    def epoch_size(self) -> EpochSize:
        """Examples and tokens of every epoch."""
        return EpochSize(self.num_examples, int(self.lengths.sum()))

    def examples(self, epoch: int, block: int) -> np.ndarray:
        """Rows of ``ROW`` in the order of the split."""
        rows = np.zeros(self.num_examples, ROW)
        rows["index"] = np.arange(len(rows))
        rows["key"] = key(self.seed, epoch, np.arange(len(rows)))
        rows["length"] = self.lengths
        return rows

    def members(self, index: np.ndarray) -> np.ndarray:
        """The sequences of some examples, one example after the other."""
        number = self.per_example[index]
        return np.repeat(self._first[index], number) + ranges(number)

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """The packed batch of some rows."""
        which = self.members(rows["index"])
        ids, types = self.sequences.lay_out(which)
        targets, counts = self.targets(rows["index"])
        counts = {"sequences": len(which), **counts}
        return pack(ids, types, self.sequences.lengths[which], targets=targets, counts=counts)

    @abstractmethod
    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """What the objective needs to know of a batch of these examples, labels only where there are some; counts."""

    @abstractmethod
    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """How many rows of outputs each of these examples has."""


class TextExamples(Examples):
    """One text or a pair with a target each."""

    def __init__(
        self,
        texts: tuple[list[str], ...],
        labels: np.ndarray | None,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        seed: int,
        both_orders: bool = False,
    ) -> None:
        """``labels`` are (N,) or (N, L); ``both_orders`` adds every pair a second time with its texts exchanged.

        Raises ``InputError`` where ``max_length`` leaves no room for text.
        """
        around = template(tokenizer, len(texts))
        room = around.room(max_length)
        tokens = tokenize([text for column in texts for text in column], tokenizer)
        lengths, starts = (flat.reshape(len(texts), -1) for flat in (tokens.lengths, tokens.starts))
        if both_orders and len(texts) == 2:
            lengths, starts = (np.concatenate([given, given[::-1]], axis=1) for given in (lengths, starts))
            labels = None if labels is None else np.concatenate([labels, labels])
        sizes = truncated(lengths, room)
        sequences = Sequences(around, tokens.ids, starts, sizes)
        cut = int((sizes < lengths).any(0).sum())
        super().__init__(sequences, np.ones(starts.shape[1], np.int64), labels, cut=cut, seed=seed)

    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """``labels`` of the examples."""
        return {} if self.labels is None else {"labels": self.labels[index]}, {"examples": len(index)}

    def num_outputs(self, index: np.ndarray) -> np.ndarray:
        """One."""
        return np.ones(len(index), np.int64)

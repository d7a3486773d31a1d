"""A split's texts as token ids, its examples as sequences of them, and the packed batch of some examples.

Legend: N examples, S sequences of all of them, P texts of a sequence, B sequences and T tokens of a batch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from bertillery.data.listed import ListedExamples, tokenize
from bertillery.engine.batch import Entities, PackedBatch, pack, ranges
from bertillery.models.frame import Template, template


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
    named: np.ndarray | None = None
    """For each token of all texts the row of the entity whose mention begins there, or 0; None without entities."""

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence (S,), special tokens included."""
        return self.sizes.sum(0) + self.template.size

    def lay_out(self, which: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and token types of some sequences, special tokens included, end to end: (T,) each."""
        ids, types = np.empty((2, int(self.lengths[which].sum())), np.int64)
        begins = self._begins(which)
        for place, special, special_types in zip(begins, self.template.parts, self.template.types, strict=True):
            cells = place[:, None] - np.arange(len(special), 0, -1)
            ids[cells], types[cells] = special, special_types
        for kind, (cells, tokens) in zip(self.template.text_types, self._placed(which), strict=True):
            ids[cells], types[cells] = self.ids[tokens], kind
        return ids, types

    def aligned(self, values: np.ndarray, which: np.ndarray) -> np.ndarray:
        """``values``, one for each token of all texts, where these lie in some sequences, end to end (T,) int64; 0 for
        special tokens."""
        found = np.zeros(int(self.lengths[which].sum()), np.int64)
        for cells, tokens in self._placed(which):
            found[cells] = values[tokens]
        return found

    def _begins(self, which: np.ndarray) -> list[np.ndarray]:
        """Where each text of some sequences begins, end to end, and last where they end."""
        place = np.cumsum(self.lengths[which]) - self.lengths[which]
        found = []
        for part, special in enumerate(self.template.parts):
            place = place + len(special)
            found.append(place)
            place = place + (self.sizes[part, which] if part < len(self.sizes) else 0)
        return found

    def _placed(self, which: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Of each text, where its tokens lie in some sequences, end to end, and among those of all texts."""
        for place, start, size in zip(self._begins(which), self.starts[:, which], self.sizes[:, which], strict=False):
            step = ranges(size)
            yield np.repeat(place, size) + step, np.repeat(start, size) + step


class Examples(ListedExamples, ABC):
    """Examples of one or several sequences, with labels."""

    def __init__(
        self, sequences: Sequences, per_example: np.ndarray, labels: np.ndarray | None, *, cut: int, seed: int
    ) -> None:
        """Example n has the next ``per_example[n]`` sequences and ``labels[n]``; ``cut`` of them are not whole."""
        self.sequences, self.per_example = sequences, per_example
        self._first = np.cumsum(per_example) - per_example
        lengths = np.add.reduceat(sequences.lengths, self._first) if len(per_example) else per_example
        super().__init__(lengths, labels, cut=cut, seed=seed)

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
        lengths = self.sequences.lengths[which]
        return pack(ids, types, lengths, targets=targets, counts=counts, beside=self.beside(which))

    def beside(self, which: np.ndarray) -> Any:
        """What a network reads beside the tokens of some sequences (:attr:`bertillery.engine.batch.Stream.beside`); by
        default the entities that the tokens name, where these are known."""
        if self.sequences.named is None:
            return None
        return Entities.aligned(self.sequences.aligned(self.sequences.named, which), self.sequences.lengths[which])

    @abstractmethod
    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """What the objective needs to know of a batch of these examples, labels only where there are some; counts."""


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
        orders: int = 1,
    ) -> None:
        """``labels`` are (N,) or (N, L); ``both_orders`` adds every pair a second time with its texts exchanged, and
        with 2 ``orders`` an example is two sequences, the pair and then the pair exchanged.

        Raises ``InputError`` where ``max_length`` leaves no room for text.
        """
        around = template(tokenizer, len(texts))
        room = around.room(max_length)
        tokens = tokenize([text for column in texts for text in column], tokenizer)
        lengths, starts = (flat.reshape(len(texts), -1) for flat in (tokens.lengths, tokens.starts))
        if both_orders and len(texts) == 2:
            lengths, starts = (np.concatenate([given, given[::-1]], axis=1) for given in (lengths, starts))
            labels = None if labels is None else np.concatenate([labels, labels])
        per_example = np.full(lengths.shape[1], orders)
        if orders == 2:
            lengths, starts = (np.stack([given, given[::-1]], axis=2).reshape(2, -1) for given in (lengths, starts))
        sizes = truncated(lengths, room)
        sequences = Sequences(around, tokens.ids, starts, sizes)
        cut = int((sizes < lengths).any(0).reshape(-1, orders).any(1).sum())
        super().__init__(sequences, per_example, labels, cut=cut, seed=seed)

    def targets(self, index: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, int]]:
        """``labels`` of the examples."""
        return {} if self.labels is None else {"labels": self.labels[index]}, {"examples": len(index)}

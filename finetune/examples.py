"""Texts of a task as token ids, and the packed batch of some of them.

Legend: N examples of the split, B of a batch, T tokens of a batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from engine.batch import PackedBatch, pack, ranges
from engine.config import InputError
from engine.keyed import key

ROW = np.dtype([("index", np.int64), ("length", np.int64), ("key", np.uint64), ("swapped", np.bool_)])
"""An example: its place in the split, its tokens, what its randomness is keyed by, and whether the pair is turned."""


@dataclass(frozen=True)
class Template:
    """The special tokens around one text or two, as the tokenizer sets them; ids and token types of each place."""

    parts: tuple[np.ndarray, ...]
    """Before the first text, (between the texts,) after the last: ids."""
    types: tuple[np.ndarray, ...]
    """Their token types."""
    text_types: tuple[int, ...]
    """Token type of each text."""

    @property
    def size(self) -> int:
        """Number of special tokens."""
        return sum(map(len, self.parts))


def template(tokenizer: PreTrainedTokenizerBase, num_texts: int) -> Template:
    """Read off what the tokenizer puts around texts, whatever its family."""
    encoded = tokenizer("a", "a" if num_texts == 2 else None, return_token_type_ids=True)
    ids, types = np.array(encoded["input_ids"]), np.array(encoded["token_type_ids"])
    owner = np.array([num_texts * 2 if o is None else o for o in encoded.sequence_ids(0)])
    cuts = [0]
    for text in range(num_texts):
        (places,) = np.nonzero(owner == text)
        cuts += [int(places[0]), int(places[-1]) + 1]
    cuts.append(len(ids))
    around = [slice(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=True)]
    inside = [int(types[np.nonzero(owner == text)[0][0]]) for text in range(num_texts)]
    return Template(tuple(ids[a] for a in around), tuple(types[a] for a in around), tuple(inside))


class Texts:
    """A column of texts as ids, end to end."""

    def __init__(self, texts: list[str], tokenizer: PreTrainedTokenizerBase) -> None:
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
        self.lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        self.starts = np.cumsum(self.lengths) - self.lengths
        self.ids = np.fromiter((i for ids in encoded for i in ids), np.int64, count=int(self.lengths.sum()))


def truncated(lengths: list[np.ndarray], room: int) -> list[np.ndarray]:
    """Tokens kept of each text so that an example has at most ``room``.

    Of a pair the longer one loses its last token until both fit, the second one where they are of one length
    (``_truncate_seq_pair`` of BERT's ``run_classifier.py``).
    """
    if len(lengths) == 1:
        return [np.minimum(lengths[0], room)]
    first, second = lengths
    first = np.minimum(first, np.maximum(room - second, -(-room // 2)))
    return [first, np.minimum(second, room - first)]


class TextExamples:
    """A source (:class:`engine.objective.Source`) of one text or a pair with a target each."""

    num_blocks = 1

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
        self.columns = [Texts(column, tokenizer) for column in texts]
        self.labels, self.seed = labels, seed
        self.template = template(tokenizer, len(texts))
        self.room = max_length - self.template.size
        if self.room < len(texts):
            raise InputError(
                f"train.phases: a sequence_length of {max_length} leaves no room beside {self.template.size} special "
                f"tokens; give at least {self.template.size + len(texts)}"
            )
        self.turns = 2 if both_orders and len(texts) == 2 else 1
        lengths = [column.lengths for column in self.columns]
        self.num_truncated = int(np.any(np.array(truncated(lengths, self.room)) < np.array(lengths), axis=0).sum())
        """Examples of the split that are cut."""

    @property
    def num_examples(self) -> int:
        """Examples of an epoch."""
        return self.turns * len(self.columns[0].lengths)

    def plan(self, epoch: int, block: int) -> np.ndarray:
        """Rows of ``ROW`` in the order of the split."""
        size = len(self.columns[0].lengths)
        rows = np.zeros(self.num_examples, ROW)
        rows["index"] = np.tile(np.arange(size), self.turns)
        rows["swapped"] = np.arange(len(rows)) >= size
        rows["key"] = key(self.seed, epoch, np.arange(len(rows)))
        rows["length"] = sum(self._kept(rows)) + self.template.size
        return rows

    def _kept(self, rows: np.ndarray) -> list[np.ndarray]:
        lengths = [column.lengths[rows["index"]] for column in self.columns]
        if self.turns == 2:
            lengths = [np.where(rows["swapped"], b, a) for a, b in zip(lengths, lengths[::-1], strict=True)]
        return truncated(lengths, self.room)

    def collate(self, rows: np.ndarray) -> PackedBatch:
        """The packed batch of some rows, with ``labels`` where there are some."""
        ids, types = self.lay_out(rows)
        targets = {} if self.labels is None else {"labels": self.labels[rows["index"]]}
        return pack(ids, types, rows["length"].astype(np.int64), targets=targets, counts={"examples": len(rows)})

    def lay_out(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and token types of the rows, special tokens included, end to end: (T,) each."""
        kept, index = self._kept(rows), rows["index"]
        ends = np.cumsum(rows["length"].astype(np.int64))
        place = ends - rows["length"].astype(np.int64)
        ids, types = np.empty((2, int(ends[-1])), np.int64)
        for part, (special, special_types) in enumerate(zip(self.template.parts, self.template.types, strict=True)):
            cells = place[:, None] + np.arange(len(special))
            ids[cells], types[cells] = special, special_types
            place = place + len(special)
            if part == len(kept):
                break
            step, size = ranges(kept[part]), kept[part]
            cells = np.repeat(place, size) + step
            types[cells] = self.template.text_types[part]
            for turned in (False, True)[: self.turns]:
                column = self.columns[part if not turned else 1 - part]
                mine = np.repeat(rows["swapped"], size) == turned
                ids[cells[mine]] = column.ids[(np.repeat(column.starts[index], size) + step)[mine]]
            place = place + size
        return ids, types

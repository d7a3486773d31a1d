"""The batch format: sequences end to end, without padding.

Legend: B sequences, T tokens of all of them together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertillery.engine.layout import CrossLayout, PackingLayout, branching_layout, cross_layout, packing_layout


@dataclass(frozen=True)
class Stream:
    """Sequences of tokens end to end, the input of a network."""

    ids: Tensor
    """(T,) int64."""
    positions: Tensor
    """(T,) int64, from 0 in every sequence."""
    offsets: Tensor
    """(B+1,) int64, start of each sequence; the last entry is T."""
    layout: PackingLayout
    """How attention pads the sequences."""
    token_type_ids: Tensor | None = None
    """(T,) int64, 0 for the first segment and 1 for the second; None where there are no segments."""
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    """(B,) int64, tokens of each sequence, on the host."""
    beside: Any = None
    """What a network reads beside the tokens: a dataclass of tensors, such as :class:`Entities`; None for nothing."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.ids)

    @property
    def squared_lengths(self) -> int:
        """Sum of the squared lengths: the size of attention, for counting FLOPs."""
        return int((self.lengths**2).sum())

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.offsets) - 1

    @property
    def first_rows(self) -> Tensor:
        """(B,) row of each sequence's first token, [CLS]."""
        return self.offsets[:-1]

    @property
    def last_rows(self) -> Tensor:
        """(B,) row of each sequence's last token."""
        return self.offsets[1:] - 1


@dataclass(frozen=True)
class Entities:
    """What some tokens of a stream name: rows of a table, where row 0 is none. The first token of every sequence is
    among them, and names none."""

    ids: Tensor
    """(R,) int64, rows of the table."""
    rows: Tensor
    """(R,) int64, where they lie in the stream, ascending."""
    layout: PackingLayout
    """How attention between the entities of a sequence pads them."""
    lengths: np.ndarray
    """(B,) int64, entities of each sequence, on the host."""

    @classmethod
    def aligned(cls, named: np.ndarray, lengths: np.ndarray) -> Entities:
        """From what each token names (T,) int64, 0 for nothing, as special tokens do, in sequences of so many tokens
        (B,)."""
        firsts = np.cumsum(lengths) - lengths
        there = named > 0
        there[firsts] = True
        rows = np.flatnonzero(there)
        numbers = np.diff(np.searchsorted(rows, np.append(firsts, len(named))))
        return cls(torch.from_numpy(named[rows]), torch.from_numpy(rows), packing_layout(numbers), numbers)

    def inputs(self) -> dict[str, Any]:
        """As a model takes them beside ``input_ids``."""
        return {"entity_ids": self.ids[None], "entity_rows": self.rows, "entity_layout": self.layout}


@dataclass(frozen=True)
class PackedBatch:
    """Examples of one micro-batch with the targets of an objective."""

    streams: dict[str, Stream]
    """By name: ``input``, or ``source`` and ``target`` of a translation. Sequence i of each belongs to example i."""
    targets: dict[str, Tensor] = field(default_factory=dict)
    """Labels and positions that the objective reads."""
    counts: dict[str, int] = field(default_factory=dict)
    """Divisors of the objective's sums, such as the number of masked tokens; known on the host."""
    cross_layout: CrossLayout | None = None
    """How the sequences of ``target`` attend to those of ``source``, where there are both."""

    @property
    def input(self) -> Stream:
        """The stream of an encoder or a decoder."""
        return self.streams["input"]

    @property
    def num_tokens(self) -> int:
        """Tokens of all streams."""
        return sum(stream.num_tokens for stream in self.streams.values())

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on a device; copies from pinned memory do not wait."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=True))

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """Tell the allocator that a CUDA stream reads the batch, other than the one that copied it."""

        def note(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        _map(self, note)

    def pin_memory(self) -> PackedBatch:
        """The batch in page-locked memory."""
        return _map(self, torch.Tensor.pin_memory)


def _map(value: Any, function: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{f.name: _map(getattr(value, f.name), function) for f in fields(value)})
    if isinstance(value, dict):
        return {name: _map(item, function) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_map(item, function) for item in value)
    return value


def pack_stream(ids: np.ndarray, lengths: np.ndarray, token_type_ids: np.ndarray | None = None) -> Stream:
    """A stream from flat arrays ``(T,)`` and the sequences' lengths ``(B,)``."""
    ends = np.cumsum(lengths, dtype=np.int64)
    assert len(ids) == ends[-1]
    assert token_type_ids is None or len(token_type_ids) == len(ids)
    return Stream(
        ids=torch.from_numpy(ids.astype(np.int64, copy=False)),
        positions=torch.from_numpy(ranges(lengths)),
        offsets=torch.from_numpy(np.concatenate(([0], ends))),
        layout=packing_layout(np.asarray(lengths)),
        token_type_ids=None
        if token_type_ids is None
        else torch.from_numpy(token_type_ids.astype(np.int64, copy=False)),
        lengths=np.asarray(lengths, dtype=np.int64),
    )


def pack_branches(ids: np.ndarray, parts: Sequence[np.ndarray]) -> Stream:
    """A decoder's stream of sequences that branch after a common prefix, which is computed once.

    ``ids`` (T,) holds each prefix, followed by its branches; ``parts`` has, for each sequence, the lengths of its
    prefix and of its branches, in this order. A token of a branch sees the prefix and its own branch, and its position
    is that in the prefix and the branch alone. A prefix has at least one token.
    """
    sizes = np.concatenate(parts)
    begins = np.concatenate([np.where(np.arange(len(part)) > 0, part[0], 0) for part in parts])
    branch = np.repeat(np.concatenate([np.arange(len(part)) for part in parts]), sizes)
    lengths = np.array([part.sum() for part in parts])
    stream = pack_stream(ids, lengths)
    if not branch.any():
        return stream
    positions = torch.from_numpy(ranges(sizes) + np.repeat(begins, sizes))
    return replace(stream, positions=positions, layout=branching_layout(lengths, branch))


def pack(
    ids: np.ndarray,
    token_type_ids: np.ndarray | None,
    lengths: np.ndarray,
    *,
    targets: dict[str, np.ndarray],
    counts: dict[str, int],
    beside: Any = None,
) -> PackedBatch:
    """A batch of one stream, from flat arrays ``(T,)`` and the sequences' lengths ``(B,)``, and what is read beside it.

    Adds the counts ``tokens`` and ``pairs_of_tokens`` (within a sequence, the number of attention scores).
    """
    stream = replace(pack_stream(ids, lengths, token_type_ids), beside=beside)
    return PackedBatch(
        {"input": stream},
        targets={name: torch.from_numpy(np.array(value)) for name, value in targets.items()},
        counts={"tokens": stream.num_tokens, "pairs_of_tokens": stream.squared_lengths, **counts},
    )


def pack_pairs(
    source: np.ndarray,
    source_lengths: np.ndarray,
    target: np.ndarray,
    target_lengths: np.ndarray,
    *,
    targets: dict[str, np.ndarray],
    counts: dict[str, int],
) -> PackedBatch:
    """A batch of two streams, ``source`` and ``target``, from flat arrays (S,) and (T,) and lengths (B,) each.

    Adds the counts ``tokens``, of both, and ``crossed_pairs_of_tokens`` (of a target and its source).
    """
    crossed = int((np.asarray(source_lengths, np.int64) * np.asarray(target_lengths, np.int64)).sum())
    return PackedBatch(
        {"source": pack_stream(source, source_lengths), "target": pack_stream(target, target_lengths)},
        targets={name: torch.from_numpy(np.array(value)) for name, value in targets.items()},
        counts={"tokens": len(source) + len(target), "crossed_pairs_of_tokens": crossed, **counts},
        cross_layout=cross_layout(np.asarray(target_lengths), np.asarray(source_lengths)),
    )


def ranges(lengths: np.ndarray) -> np.ndarray:
    """``0 .. n-1`` for each length n, end to end: int64 (sum of lengths,)."""
    lengths = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)

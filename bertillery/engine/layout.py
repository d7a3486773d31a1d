"""Where the sequences of a packed batch lie, and how attention pads them.

Legend: B sequences, T tokens of all of them together; b sequences of a bucket, s its padded length, P = sum of b*s.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128
"""Queries and keys of a cell of the block mask."""


@dataclass  # frozen, torch 2.11 would compile layers anew for every number of padded buckets
class PackingLayout:
    """Where the sequences of the flat batch lie, and which of its rows form which padded bucket."""

    gather: Tensor
    """(P,) flat row behind each cell of the padded buckets; padding, at the end of a sequence, repeats row 0."""
    scatter: Tensor
    """(T,) cell in which each flat row lies."""
    shapes: tuple[tuple[int, int], ...]
    """(b, s) of each bucket."""
    biases: tuple[Tensor | None, ...]
    """Per bucket (b, 1, 1, s): 0 for tokens, -inf for padding; ``None`` for a bucket without padding."""
    starts: Tensor
    """(B+1,) int32, where each sequence starts; the last entry is T."""
    longest: int
    """Tokens of the longest sequence."""
    identity: bool
    """True if the flat batch already is one padded bucket."""
    branches: tuple[Tensor, ...] | None = None
    """Per bucket (b, 1, s, s): 0 where a query sees a key, -inf elsewhere, for sequences of a decoder that branch after
    a common prefix (:func:`branching_layout`). It replaces ``biases`` and the causal mask."""

    @cached_property
    def sequence_mask(self) -> BlockMask:
        """Which tokens are of one sequence. All layers use it; it is made on the device of the layout."""
        return sequence_mask(self, self)

    @cached_property
    def causal_mask(self) -> BlockMask:
        """Which tokens are of one sequence, and not after the query."""
        return sequence_mask(self, self, causal=True)


@dataclass
class CrossLayout:
    """Two streams of which sequence i attends to sequence i, in buckets of the same sequences."""

    queries: PackingLayout
    keys: PackingLayout

    @cached_property
    def sequence_mask(self) -> BlockMask:
        """Which keys are of the sequence with the number of the query's."""
        return sequence_mask(self.queries, self.keys)


def packing_layout(lengths: np.ndarray) -> PackingLayout:
    """Bucket the sequences of a batch, of ``lengths`` (B,), by length rounded up to a sixteenth of the longest."""
    return _bucketed(lengths, _rounded(lengths, 16))


def branching_layout(lengths: np.ndarray, branch: np.ndarray) -> PackingLayout:
    """The layout of sequences, of ``lengths`` (B,), that branch: a token sees the earlier tokens of its own ``branch``
    (T,), which is counted from 1 in each sequence, and of the prefix, which is 0."""
    layout, masks, start = packing_layout(lengths), [], 0
    for b, s in layout.shapes:
        of_cell = torch.from_numpy(branch)[layout.gather[start : start + b * s]].view(b, s)
        queries, keys = of_cell[:, :, None], of_cell[:, None, :]
        seen = ((queries == keys) | (keys == 0)).tril()
        masks.append(torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None])
        start += b * s
    return replace(layout, branches=tuple(masks))


def cross_layout(queries: np.ndarray, keys: np.ndarray) -> CrossLayout:
    """Bucket pairs of sequences, of lengths ``queries`` (B,) and ``keys`` (B,), by both lengths, each rounded up to a
    quarter of the longest."""
    _, groups = np.unique(np.stack([_rounded(queries, 4), _rounded(keys, 4)]), axis=1, return_inverse=True)
    return CrossLayout(_bucketed(queries, groups), _bucketed(keys, groups))


def _rounded(lengths: np.ndarray, levels: int) -> np.ndarray:
    """Numbers of the ``levels`` of length, of at least 8 tokens each, that sequences are in: (B,) from (B,)."""
    grain = max(8, -(-int(lengths.max()) // levels))
    return -(-lengths // grain)


def _bucketed(lengths: np.ndarray, groups: np.ndarray) -> PackingLayout:
    """One bucket for all sequences, of ``lengths`` (B,), that have the same number in ``groups`` (B,)."""
    starts = np.concatenate(([0], np.cumsum(lengths)))
    scatter = np.empty(starts[-1], dtype=np.int64)
    gathers, shapes, biases, offset = [], [], [], 0
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        size = int(lengths[members].max())
        column = np.arange(size)
        real = column < lengths[members][:, None]
        rows = np.where(real, starts[members][:, None] + column, 0)
        scatter[rows[real]] = offset + np.flatnonzero(real)
        gathers.append(rows.ravel())
        shapes.append((len(members), size))
        bias = np.where(real, 0.0, -np.inf).astype(np.float32)[:, None, None, :]
        biases.append(None if real.all() else torch.from_numpy(bias))
        offset += rows.size
    return PackingLayout(
        torch.from_numpy(np.concatenate(gathers)),
        torch.from_numpy(scatter),
        tuple(shapes),
        tuple(biases),
        torch.from_numpy(starts.astype(np.int32)),
        int(lengths.max()),
        identity=len(shapes) == 1 and biases[0] is None,
    )


def sequence_mask(queries: PackingLayout, keys: PackingLayout, *, causal: bool = False) -> BlockMask:
    """The block mask with which each query attends to the keys of its sequence; if ``causal``, to none after it.

    The blocks are worked out on the device of the layouts, without waiting for it. The keys that a row of blocks needs
    are contiguous: from the first key of its first sequence to the last key of its last one. (The library's own
    ``create_block_mask`` would look at all pairs of tokens.)
    """
    device = queries.starts.device
    num_queries, num_keys = len(queries.scatter), len(keys.scatter)

    def sequences(starts: Tensor, total: int) -> Tensor:
        tokens = torch.arange(total, dtype=torch.int32, device=device)
        return torch.searchsorted(starts, tokens, right=True, out_int32=True) - 1

    of_queries, of_keys = sequences(queries.starts, num_queries), sequences(keys.starts, num_keys)
    blocks = torch.arange(-(-num_queries // _BLOCK), device=device)
    columns = torch.arange(-(-num_keys // _BLOCK), device=device)
    first, last = blocks * _BLOCK, (blocks * _BLOCK + _BLOCK - 1).clamp(max=num_queries - 1)
    low = keys.starts[of_queries[first]] // _BLOCK
    high = blocks if causal else (keys.starts[of_queries[last] + 1] - 1) // _BLOCK

    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        together = of_queries[query] == of_keys[key]
        return together & (query >= key) if causal else together

    return BlockMask.from_kv_blocks(
        (high - low + 1).int()[None, None],
        ((low[:, None] + columns) % len(columns)).int()[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=seen,
        seq_lengths=(num_queries, num_keys),
    )

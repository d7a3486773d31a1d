"""Where the sequences of a packed batch lie, and how attention pads them.

Legend: B sequences, T tokens of all of them together; b sequences of a bucket, s its padded length, P = sum of b*s.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

_BLOCK = 128
"""Queries and keys of a cell of the block mask."""


@dataclass  # frozen, torch 2.11 would compile layers anew for every number of padded buckets
class PackingLayout:
    """Place of the sequences in the flat batch, and of its rows in padded buckets."""

    gather: Tensor
    """(P,) flat row of each cell of the padded buckets; padding repeats row 0."""
    scatter: Tensor
    """(T,) cell of each flat row."""
    shapes: tuple[tuple[int, int], ...]
    """(b, s) of each bucket."""
    biases: tuple[Tensor | None, ...]
    """(b, 1, 1, s) of each bucket: 0 for real keys, -inf for padding; ``None`` without padding."""
    starts: Tensor
    """(B+1,) int32, start of each sequence; the last entry is T."""
    longest: int
    """Tokens of the longest sequence."""

    @property
    def identity(self) -> bool:
        """Whether the flat batch is one bucket without padding."""
        return len(self.shapes) == 1 and self.biases[0] is None

    @cached_property
    def sequence_mask(self) -> BlockMask:
        """Which tokens share a sequence, for all layers; built on the layout's device."""
        return sequence_mask(self.starts, len(self.scatter))


def packing_layout(lengths: np.ndarray) -> PackingLayout:
    """Bucket the sequences of a batch, of ``lengths`` (B,), by length rounded up to a sixteenth of the longest."""
    starts = np.concatenate(([0], np.cumsum(lengths)))
    grain = max(8, -(-int(lengths.max()) // 16))
    ceiling = -(-lengths // grain)
    scatter = np.empty(starts[-1], dtype=np.int64)
    gathers, shapes, biases, offset = [], [], [], 0
    for level in np.unique(ceiling):
        members = np.flatnonzero(ceiling == level)
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
    )


def sequence_mask(starts: Tensor, total: int) -> BlockMask:
    """Mask in which T = ``total`` tokens attend to those of their own sequence; ``starts`` (B+1,) is int32.

    The blocks that a row of blocks needs are consecutive, from the first token of its first sequence to the last token
    of its last one, so they are computed on the device without waiting. (torch's ``create_block_mask`` would evaluate
    all T times T pairs.)
    """
    device = starts.device
    tokens = torch.arange(total, dtype=torch.int32, device=device)
    sequence = torch.searchsorted(starts, tokens, right=True, out_int32=True) - 1
    blocks = torch.arange(-(-total // _BLOCK), device=device)
    first, last = blocks * _BLOCK, (blocks * _BLOCK + _BLOCK - 1).clamp(max=total - 1)
    low = starts[sequence[first]] // _BLOCK
    high = (starts[sequence[last] + 1] - 1) // _BLOCK
    columns = (low[:, None] + blocks) % len(blocks)

    def together(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return sequence[query] == sequence[key]

    return BlockMask.from_kv_blocks(
        (high - low + 1).int()[None, None],
        columns.int()[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=together,
        seq_lengths=(total, total),
    )

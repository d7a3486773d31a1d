"""Recurrent layers on packed batches: the order of time, reversal, and cells of three kinds.

Legend: N sequences, T tokens of all of them; L layers; P tensors of a state, 2 for an LSTM and 1 otherwise; H width.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

Cell = Literal["rnn", "lstm", "gru"]
_CELLS = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}


class TimeMajor(NamedTuple):
    """Rows of a flat batch in the order of a ``PackedSequence``: all first tokens, all second ones; the longest
    sequence is the first at every step."""

    rows: Tensor
    """(T,) flat row of each row here."""
    places: Tensor
    """(T,) the inverse."""
    sizes: Tensor
    """Sequences that have a token, for each step; on the host."""
    order: Tensor
    """(N,) the sequences, longest first."""
    rank: Tensor
    """(N,) the inverse."""

    def packed(self, flat: Tensor) -> PackedSequence:
        """Rows (T, ...) of a flat batch for a recurrent layer of torch."""
        return PackedSequence(flat[self.rows], self.sizes, self.order, self.rank)

    def steps(self, flat: Tensor) -> tuple[Tensor, ...]:
        """Rows (T, ...) of a flat batch by step, (sequences that have one, ...) each."""
        return flat[self.rows].split(self.sizes.tolist())


def time_major(lengths: np.ndarray, device: torch.device) -> TimeMajor:
    """The order of a flat batch of sequences of these ``lengths`` (N,)."""
    order = np.argsort(-lengths, kind="stable")
    steps = np.arange(lengths.max())[:, None]
    alive = steps < lengths[order]
    rows = ((np.cumsum(lengths) - lengths)[order] + steps)[alive]
    arrays = rows, np.argsort(rows), order, np.argsort(order)
    rows, places, order, rank = (torch.from_numpy(array).to(device) for array in arrays)
    return TimeMajor(rows, places, torch.from_numpy(alive.sum(1)), order, rank)


def reversed_rows(ids: Tensor, offsets: Tensor, eos: int | None) -> Tensor:
    """Rows (T,) of a flat batch, of ``ids`` (T,), in which each sequence runs backwards, but for an end-of-sequence
    token that closes it. Taken twice they are the original ones."""
    lengths = offsets.diff()
    begins, ends = offsets[:-1], offsets[1:] - torch.eq(ids[offsets[1:] - 1], -1 if eos is None else eos).long()
    begins, ends = (each.repeat_interleave(lengths, output_size=len(ids)) for each in (begins, ends))
    rows = torch.arange(len(ids), device=ids.device)
    return torch.where(rows < ends, begins + ends - 1 - rows, rows)


class Recurrence(nn.Module):
    """Layers of cells, which run in the precision of their weights: rounding a state to 16 bits at each step would
    lose what a step adds, and CPUs have no LSTM of mixed precision. ``config`` has ``cell``, ``num_hidden_layers`` and
    ``dropout``."""

    def __init__(self, config: Any, input_size: int, hidden_size: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.cells = _CELLS[config.cell](
            input_size,
            hidden_size,
            config.num_hidden_layers,
            dropout=config.dropout if config.num_hidden_layers > 1 else 0.0,
            bidirectional=bidirectional,
        )

    def forward(self, inputs: Any, state: Tensor | None = None) -> tuple[Any, Tensor]:
        """States of the top layer for inputs (T, N, ...) or a ``PackedSequence``; and the last ones (N, P, L, ...) of
        all layers, both directions end to end. It starts from ``state`` (N, P, L, H), or from 0."""
        dtype = self.cells.weight_ih_l0.dtype
        first = None
        if state is not None:
            first = state.to(dtype).permute(1, 2, 0, 3).contiguous().unbind()
            first = first[0] if len(first) == 1 else first
        with torch.autocast(self.cells.weight_ih_l0.device.type, enabled=False):
            outputs, last = self.cells(inputs.to(dtype), first)
        parts: Any = last if isinstance(last, tuple) else (last,)
        last = torch.stack(parts)  # (P, L x directions, N, width)
        directions = 1 + self.cells.bidirectional
        return outputs, last.unflatten(1, (-1, directions)).permute(3, 0, 1, 2, 4).flatten(3)

    def pieces(self, order: TimeMajor, flat: Tensor, state: Tensor, steps: int) -> Iterator[Tensor]:
        """States of the top layer, in the rows of ``order``, for rows (T, ...) of a flat batch, ``steps`` of time after
        the other: a piece starts from the last states of the one before, without a gradient to it. ``state`` (N, P, L,
        H) is the first one."""
        sizes = order.sizes.split(steps)
        rows = flat[order.rows].split([int(piece.sum()) for piece in sizes])
        state = state[order.order]
        for piece, of_piece in zip(rows, sizes, strict=True):
            outputs, last = self(PackedSequence(piece, of_piece), state[: int(of_piece[0])])
            state = last.detach()
            yield outputs.data

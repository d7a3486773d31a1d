"""The one batch format: sequences laid end to end, without padding.

Legend: B sequences, T tokens of all of them together.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bertillery.engine.layout import AttentionPlan, plan_attention


@dataclass(frozen=True)
class PackedBatch:
    """Examples of one micro-batch, with the targets of an objective."""

    input_ids: Tensor
    """(T,) int64."""
    token_type_ids: Tensor
    """(T,) int64, 0 for the first segment and 1 for the second."""
    position_ids: Tensor
    """(T,) int64, from 0 in every sequence."""
    cu_seqlens: Tensor
    """(B+1,) int64, where each sequence starts; the last entry is T."""
    attention: AttentionPlan
    """How :mod:`bertillery.models.attention` forms rectangles."""
    targets: dict[str, Tensor] = field(default_factory=dict)
    """What the objective compares with."""
    counts: dict[str, int] = field(default_factory=dict)
    """How many targets of each kind the batch holds: what the objective's sums are divided by, known on the host."""
    squared_lengths: int = 0
    """Sum of the squared lengths: the size of attention, for counting FLOPs."""

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.cu_seqlens) - 1

    @property
    def first_rows(self) -> Tensor:
        """(B,) row of each sequence's first token, [CLS]."""
        return self.cu_seqlens[:-1]

    def model_inputs(self) -> dict[str, Any]:
        """Keyword arguments for a stock model whose attention implementation is ``packed``: tensors are (1, T)."""
        return {
            "input_ids": self.input_ids[None],
            "token_type_ids": self.token_type_ids[None],
            "position_ids": self.position_ids[None],
            "plan": self.attention,
        }

    def to(self, device: torch.device) -> PackedBatch:
        """The batch on a device; a copy from pinned memory does not wait."""
        return _map(self, lambda tensor: tensor.to(device, non_blocking=True))

    def used_on(self, stream: torch.cuda.Stream) -> None:
        """Say that a stream other than the one it was copied on reads the batch; its memory waits for that one, too."""

        def note(tensor: Tensor) -> Tensor:
            tensor.record_stream(stream)
            return tensor

        _map(self, note)

    def pin_memory(self) -> PackedBatch:
        """The batch in page-locked memory (called by torch's data loader)."""
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


def pack(
    input_ids: np.ndarray,
    token_type_ids: np.ndarray,
    lengths: np.ndarray,
    *,
    targets: dict[str, np.ndarray],
    counts: dict[str, int],
) -> PackedBatch:
    """Build a batch from flat arrays ``(T,)`` and the sequences' lengths ``(B,)``.

    Besides ``counts`` it knows its ``tokens``, and its ``pairs_of_tokens`` of one sequence, which is what attention
    scores are.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    pairs = int((np.asarray(lengths, dtype=np.int64) ** 2).sum())
    assert len(input_ids) == len(token_type_ids) == ends[-1]
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64, copy=False)),
        token_type_ids=torch.from_numpy(token_type_ids.astype(np.int64, copy=False)),
        position_ids=torch.from_numpy(ranges(lengths)),
        cu_seqlens=torch.from_numpy(np.concatenate(([0], ends))),
        attention=plan_attention(np.asarray(lengths)),
        targets={name: torch.from_numpy(np.array(value)) for name, value in targets.items()},
        counts={"tokens": int(ends[-1]), "pairs_of_tokens": pairs, **counts},
        squared_lengths=pairs,
    )


def ranges(lengths: np.ndarray) -> np.ndarray:
    """``0 .. n-1`` for each length n, end to end: int64 (sum of lengths,)."""
    lengths = np.asarray(lengths, dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum()), dtype=np.int64) - np.repeat(starts, lengths)

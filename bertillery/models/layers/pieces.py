"""How much of a large tensor a CPU works on at a time, so that what lies between one operation and the next fits into
the cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def at_a_time(most: int) -> int:
    """Numbers of a piece, of which the cache of one thread holds ``most``. Several threads are given twice as many
    each, since they wait for each other after every operation."""
    threads = torch.get_num_threads()
    return most if threads == 1 else 2 * most * threads


def few_at_a_time(logits: Tensor, most: int) -> Iterator[slice]:
    """Rows of logits (R, V), of a piece each, or one row; all of them on a GPU, for which small kernels cost more than
    memory."""
    on_cpu = logits.device.type == "cpu"
    number = max(1, at_a_time(most) // logits.shape[-1] if on_cpu else len(logits))
    return (slice(start, start + number) for start in range(0, len(logits), number))

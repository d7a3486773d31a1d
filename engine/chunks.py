"""What is made for every row and would be too large for all of them at once: logits over a vocabulary.

Legend: M rows, R rows of a chunk, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

LOGITS = 1 << 28
"""Logits of masked words that are held at a time, at most: 1 GiB in float32, and as much again a few times over."""

T = TypeVar("T")


def in_chunks(function: Callable[..., T], *tensors: Tensor, width: int, most: int) -> list[T]:
    """``function`` of as many rows of the tensors (M, ...) at a time as hold at most so many numbers, ``width`` each.

    A single chunk is a plain call. More of them are computed again in the backward pass, so that one at a time is held.
    """
    rows = max(1, most // width)
    again = rows < len(tensors[0]) and torch.is_grad_enabled()
    return [
        checkpoint(function, *some, use_reentrant=False) if again else function(*some)
        for some in zip(*(tensor.split(rows) for tensor in tensors), strict=True)
    ]


def word_sums(
    head: Callable[[Tensor], Tensor], hidden: Tensor, words: Tensor, *, vocab_size: int
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the ``words`` (M,) in nats, and how many are guessed right, summed over hidden states (M, H).

    ``head`` makes logits (R, V) of (R, H). They are compared in float32 whatever the precision of the model.
    """

    def sums(hidden: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(hidden).float()
        right = (logits.detach().argmax(-1) == words).sum()
        return F.cross_entropy(logits, words, reduction="sum"), right

    losses, rights = zip(*in_chunks(sums, hidden, words, width=vocab_size, most=LOGITS), strict=True)
    return torch.stack(losses).sum(), torch.stack(rights).sum()

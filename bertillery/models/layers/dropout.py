"""Dropout in training: a mask that costs a quarter of the random numbers, and the places the original has one.

Torch draws one 32-bit number per element on a CPU, which costs more than the layer around it once the matrix products
run in bfloat16. Sixteen bits are enough: the drop probability is met to 1/65536 (0.1 becomes 0.10001), and kept
values are scaled by the probability that was actually used, so the expectation is exact.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.albert.modeling_albert import AlbertLayer

_LEVELS = 1 << 16


def dropout(x: Tensor, probability: float, *, training: bool) -> Tensor:
    """Zero elements of ``x`` with the given probability and scale the rest, from torch's global generator."""
    if not training or probability == 0.0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, probability)
    return _on_cpu(x, probability)


@torch.compiler.disable()  # views of one tensor as several types: torch 2.13 compiles them wrongly
def _on_cpu(x: Tensor, probability: float) -> Tensor:
    return _Dropout.apply(x, probability)


_WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as the floats, by bytes."""


class _Dropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        threshold = round(probability * _LEVELS)
        words = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(1 << 63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        # All ones where a value is kept: integers in place are several times faster than booleans and torch.where.
        keep = bits.ge_(threshold - _LEVELS // 2).neg_()
        ctx.scale = _LEVELS / (_LEVELS - threshold)
        ctx.save_for_backward(keep)
        return _masked(x * ctx.scale, keep)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return _masked(grads[0] * ctx.scale, keep), None


def _masked(x: Tensor, keep: Tensor) -> Tensor:
    """Zero the bits of what is not kept, in place."""
    words = x.view(_WORDS[x.element_size()])
    words &= keep.to(words.dtype)
    return x


class Dropout(nn.Dropout):
    """Drop-in for ``nn.Dropout`` that draws its mask with :func:`dropout`."""

    def forward(self, input: Tensor) -> Tensor:
        """Apply dropout in training mode."""
        return dropout(input, self.p, training=self.training)


class DroppingAlbertLayer(AlbertLayer):
    """ALBERT's layer, with dropout between the feed-forward part and the residual connection, as in the original.

    The stock layer holds that dropout, ``dropout``, but never calls it.
    """

    def ff_chunk(self, attention_output: Tensor) -> Tensor:
        """The feed-forward part of hidden states (B, T, H), dropped out in training."""
        return self.dropout(super().ff_chunk(attention_output))

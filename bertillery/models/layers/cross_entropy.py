"""Cross-entropy over a vocabulary whose softmax is computed once: it becomes the gradient in the same memory.

``torch.nn.functional.cross_entropy`` makes three tensors of the logits' size: the log-probabilities, their gradient,
which is nearly all zeros, and the gradient of the logits. Here the softmax is the only one, beside copies of logits and
gradient in the other precision where the logits are in 16 bits.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class CrossEntropies(NamedTuple):
    """Of each row (R,), in float32 at least."""

    losses: Tensor
    """Cross-entropy in nats with the smoothed target; the one that has a gradient."""
    plain: Tensor
    """Cross-entropy of the word itself."""
    right: Tensor
    """Whether the word is the first of the largest logits."""


def cross_entropies(logits: Tensor, words: Tensor, smoothing: float = 0.0, *, others: bool = False) -> CrossEntropies:
    """Those of ``words`` (R,) under ``logits`` (R, V), which are compared in float32 at least.

    The target has 1 - ``smoothing`` on the word and ``smoothing`` spread evenly over all V words, as in torch, or with
    ``others`` over the V - 1 others. There is no second derivative, and one backward pass.
    """
    everywhere = smoothing / (logits.shape[-1] - others)
    return CrossEntropies(*_CrossEntropies.apply(logits, words, 1 - smoothing - everywhere * others, everywhere))


class _CrossEntropies(torch.autograd.Function):
    """``word`` is the share of the target on the word alone, ``everywhere`` the share on each of all words."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, words: Tensor, word: float, everywhere: float) -> tuple[Tensor, ...]:
        column, compared = words[:, None], logits.to(torch.promote_types(logits.dtype, torch.float32))
        largest, shares = compared.argmax(-1, keepdim=True), compared.softmax(-1)
        # The largest share is at least 1 / V, so that its logarithm is finite.
        total = compared.gather(1, largest) - shares.gather(1, largest).log()
        plain, right = (total - compared.gather(1, column))[:, 0], largest[:, 0] == words
        losses = plain.clone()
        if everywhere:
            losses = word * plain + everywhere * (logits.shape[-1] * total[:, 0] - compared.sum(-1))
        ctx.save_for_backward(shares, column)
        ctx.target, ctx.dtype = (word, everywhere), logits.dtype
        ctx.mark_non_differentiable(plain, right)
        return losses, plain, right

    @staticmethod
    @once_differentiable  # pyright: ignore[reportArgumentType]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shares, column = ctx.saved_tensors
        word, everywhere = ctx.target
        if everywhere:
            shares.sub_(everywhere)
        shares.scatter_add_(1, column, torch.full_like(grads[0], -word)[:, None])
        return shares.mul_(grads[0][:, None]).to(ctx.dtype), None, None, None

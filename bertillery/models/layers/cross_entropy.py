"""Cross-entropy over a vocabulary that keeps the gradient of the logits, and nothing else of their size.

``torch.nn.functional.cross_entropy`` makes three tensors of the logits' size, beside copies in float32 where they are
in 16 bits: the log-probabilities, their gradient, which is nearly all zeros, and the gradient of the logits. Here the
gradient of each row's loss is made of the exponentials that the loss takes, and the backward pass only weighs it. On a
CPU the work goes over a few rows at a time, so that what lies between fits into the cache.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bertillery.models.layers.pieces import few_at_a_time

_IN_CACHE = 1 << 18
"""Numbers of a piece: 1 MiB in float32."""
_BITS_IN_A_NAT = math.log2(math.e)


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
    ``others`` over the V - 1 others. There is no second derivative.
    """
    everywhere = smoothing / (logits.shape[-1] - others)
    return CrossEntropies(*_CrossEntropies.apply(logits, words, 1 - smoothing - everywhere * others, everywhere))


class _CrossEntropies(torch.autograd.Function):
    """``word`` is the share of the target on the word alone, ``everywhere`` the share on each of all words."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, words: Tensor, word: float, everywhere: float) -> tuple[Tensor, ...]:
        kind, column = torch.promote_types(logits.dtype, torch.float32), words[:, None]
        largest, exponentials, sums = torch.empty(3, len(logits), 1, dtype=kind, device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        on_word = torch.full_like(largest, -word)
        for rows in few_at_a_time(logits, _IN_CACHE):
            compared = torch.empty_like(logits[rows], dtype=kind).copy_(logits[rows])
            torch.amax(compared, -1, keepdim=True, out=largest[rows])
            if everywhere:
                torch.sum(compared, -1, keepdim=True, out=sums[rows])
            exponential(compared.sub_(largest[rows]), out=compared)
            torch.sum(compared, -1, keepdim=True, out=exponentials[rows])
            if gradient is not None:
                shares = compared.div_(exponentials[rows])
                if everywhere:
                    shares.sub_(everywhere)
                gradient[rows] = shares.scatter_add_(1, column[rows], on_word[rows])
        total, found = largest + exponentials.log(), logits.gather(1, column).to(kind)
        losses = plain = (total - found)[:, 0]
        if everywhere:
            losses = word * plain + everywhere * (logits.shape[-1] * total - sums)[:, 0]
        ctx.save_for_backward(gradient)
        right = _first(logits, words, found == largest)
        plain = plain.clone()
        ctx.mark_non_differentiable(plain, right)
        return losses, plain, right

    @staticmethod
    @once_differentiable  # pyright: ignore[reportArgumentType]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return weighted(gradient, grads[0]), None, None, None


def exponential(x: Tensor, out: Tensor | None = None) -> Tensor:
    """e to the power of ``x``, element by element; written to ``out``, which may be ``x``, where it is given.

    On a CPU it is a power of two, since torch leaves ``exp`` to a library that takes three times as long for it on some
    CPUs. On a GPU that would be another pass over the logits.
    """
    if x.device.type != "cpu":
        return torch.exp(x, out=out)
    return torch.mul(x, _BITS_IN_A_NAT, out=out).exp2_()


def weighted(rows: Tensor, weights: Tensor) -> Tensor:
    """Rows (R, V), each times its weight (R,), in the precision of the rows. A weight is not rounded to 16 bits: it is
    mostly the same for all rows, so its error would be one of the whole gradient."""
    if rows.dtype == weights.dtype:
        return rows * weights[:, None]
    found = torch.empty_like(rows)
    for some in few_at_a_time(rows, _IN_CACHE):
        torch.mul(rows[some], weights[some, None], out=found[some])
    return found


def _first(logits: Tensor, words: Tensor, largest: Tensor) -> Tensor:
    """Whether each word is the first of the largest logits, (R,), of which ``largest`` (R, 1) says whether it is one.

    Looking for the place costs several times what looking for the size does, so it is done for these rows alone; on a
    GPU for all, since the host would have to wait to learn which they are.
    """
    if logits.device.type != "cpu":
        return logits.argmax(-1) == words
    (rows,) = largest[:, 0].nonzero(as_tuple=True)
    right = torch.zeros(len(words), dtype=torch.bool)
    right[rows] = logits[rows].argmax(-1) == words[rows]
    return right

"""Divergence between two distributions over a vocabulary, with the gradient worked out beside it.

What is kept until the backward pass is the difference of the two distributions; on a CPU the rest lives in the cache, a
few rows at a time.

Legend: R rows, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bertillery.models.layers.cross_entropy import exponential, weighted
from bertillery.models.layers.pieces import few_at_a_time

_IN_CACHE = 1 << 17
"""Numbers of a piece: 512 KiB in float32, four times."""


def divergences(student: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) (R,), in nats and float32, of the softmax of logits (R, V) over ``temperature``.

    Only ``student`` has a gradient, and no second one.
    """
    return _Divergences.apply(student, teacher, temperature)


class _Divergences(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        wanted, found = ctx.needs_input_grad[0], torch.empty(len(student), dtype=torch.float32, device=student.device)
        difference = torch.empty_like(student) if wanted else student
        for rows in few_at_a_time(student, _IN_CACHE):
            mine, my_shares, my_sums = _exponentials(student[rows], temperature)
            theirs, shares, sums = _exponentials(teacher[rows], temperature)
            surprise = theirs.sub_(mine).mul_(shares).sum(-1, keepdim=True)
            found[rows] = (surprise / sums - sums.log() + my_sums.log())[:, 0]
            if wanted:
                difference[rows] = my_shares.div_(my_sums).sub_(shares.div_(sums))
        ctx.save_for_backward(difference)
        ctx.temperature = temperature
        return found

    @staticmethod
    @once_differentiable  # pyright: ignore[reportArgumentType]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (difference,) = ctx.saved_tensors
        return weighted(difference, grads[0] / ctx.temperature), None, None


def _exponentials(logits: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits over temperature, less the largest of the row; their exponentials; and the sums of these (., 1)."""
    shifted = torch.empty_like(logits, dtype=torch.float32).copy_(logits)
    if temperature != 1:
        shifted.div_(temperature)
    shifted.sub_(shifted.amax(-1, keepdim=True))
    exponentials = exponential(shifted)
    return shifted, exponentials, exponentials.sum(-1, keepdim=True)

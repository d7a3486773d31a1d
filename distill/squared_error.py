"""The sum of squared differences, in one pass each way: the difference is all that is kept of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def squared_error(student: Tensor, teacher: Tensor, counted: Tensor | None = None) -> Tensor:
    """Sum (), in float32, of the squared differences of two tensors (...) of one shape.

    ``counted``, of a shape that can be expanded to theirs, is 1 for what is summed and 0 for the rest. Only ``student``
    has a gradient.
    """
    return _SquaredError.apply(student, teacher, counted)


class _SquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, counted: Tensor | None) -> Tensor:
        difference = student.float() - teacher.float()
        if counted is not None:
            difference.mul_(counted)
        ctx.save_for_backward(difference)
        ctx.kind = student.dtype
        flat = difference.flatten()
        return torch.dot(flat, flat)

    @staticmethod
    @once_differentiable  # pyright: ignore[reportArgumentType]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (difference,) = ctx.saved_tensors
        return (difference * (2 * grads[0])).to(ctx.kind), None, None

"""The tanh form of GELU, as BERT, ALBERT and GPT have it, as fast on a CPU as the form by the error function.

Torch takes three to five times as long for it there. In bfloat16 there are 65,536 numbers in all, so that values and
slopes are looked up, each rounded once; the slope is kept for the backward pass in place of ``x``.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_IN_CACHE = 1 << 16
"""Numbers of a piece: their places in the tables are 256 KiB."""


@cache
def _tables() -> tuple[Tensor, Tensor]:
    """Values and slopes (65,536,), by the bits of a number."""
    with torch.enable_grad():
        x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).double().requires_grad_()
        values = F.gelu(x, approximate="tanh")
        (slopes,) = torch.autograd.grad(values.sum(), x)
    return values.detach().bfloat16(), slopes.bfloat16()


class _TanhGelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        (values, slopes), wanted = _tables(), ctx.needs_input_grad[0]
        x = x.contiguous()
        out, slope = torch.empty_like(x), torch.empty_like(x) if wanted else x
        for part, result, derivative in zip(*(t.view(-1).split(_IN_CACHE) for t in (x, out, slope)), strict=True):
            places = part.view(torch.uint16).to(torch.int32)
            torch.index_select(values, 0, places, out=result)
            if wanted:
                torch.index_select(slopes, 0, places, out=derivative)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    @once_differentiable  # pyright: ignore[reportArgumentType]
    def backward(ctx: Any, *grads: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slope,) = ctx.saved_tensors
        return grads[0] * slope


class TanhGelu(nn.Module):
    """Drop-in for the modules of transformers that compute the tanh form."""

    def forward(self, input: Tensor) -> Tensor:
        """Element by element."""
        if input.device.type == "cpu" and input.dtype == torch.bfloat16 and not torch.compiler.is_compiling():
            return _TanhGelu.apply(input)
        return F.gelu(input, approximate="tanh")

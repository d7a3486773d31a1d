"""Linear layers in bfloat16 on a CPU, for batches that have another number of tokens each time.

The library that multiplies bfloat16 on CPUs makes a kernel for every shape it meets and keeps it. A packed batch has a
new number of tokens in nearly every step, and making its kernels takes longer than the products do where texts are
short. So the rows of a product are filled up with zeros to one of a few numbers: in the copy that is made for bfloat16
anyway, and in one of the gradient.

Legend: T rows, I and O width of input and output.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

_LEAST = 16
"""Rows of the smallest kernel, and of what the sizes of small ones differ by."""


def _beginning_with_bias() -> Any:
    """What torch's compiler makes of linear layers; ``None`` where torch, or the CPU in bfloat16, cannot."""
    if not (torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


WITH_BIAS = _beginning_with_bias()
"""A product that begins with its bias, or ``None``."""


def kernel_rows(number: int) -> int:
    """Rows of the kernel for so many: at most a sixteenth more, or the next multiple of 16."""
    grain = max(_LEAST, 1 << max(0, number.bit_length() - 5))
    return -(-number // grain) * grain


class _Linear(torch.autograd.Function):
    """``x`` (..., I) by ``weight`` (O, I) in bfloat16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows, narrow = _filled(x.flatten(0, -2)), weight.to(torch.bfloat16)
        ctx.save_for_backward(rows, narrow)
        ctx.shape, ctx.kinds = x.shape, (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        out = _product(rows, narrow, bias)
        return out[: x.shape[:-1].numel()].view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable  # pyright: ignore[reportArgumentType]
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        rows, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.kinds
        gradient = grads[0].flatten(0, -2)
        filled = _filled(gradient)
        needs = ctx.needs_input_grad
        x = (filled @ weight)[: len(gradient)].to(of_x).view(ctx.shape) if needs[0] else None
        w = (filled.T @ rows).to(of_weight) if needs[1] else None
        return x, w, filled.sum(0).to(of_bias) if needs[2] else None


def _product(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` with a bias of any precision. Where torch can, the product begins with the bias, which torch's own
    function writes to all of the result first: with a vocabulary that takes a tenth of the time."""
    if WITH_BIAS is not None:
        return WITH_BIAS(rows, weight, bias, "none", [], "")
    return F.linear(rows, weight, None if bias is None else bias.to(rows.dtype))


def _filled(rows: Tensor) -> Tensor:
    """A copy (T or more, ...) in bfloat16; zeros behind."""
    number = kernel_rows(len(rows))
    if number == len(rows):
        return rows.to(torch.bfloat16)
    made = rows.new_empty(number, rows.shape[-1], dtype=torch.bfloat16)
    made[: len(rows)].copy_(rows)
    made[len(rows) :].zero_()
    return made


def _applies(x: Tensor) -> bool:
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16


class Linear(nn.Linear):
    """Drop-in for ``nn.Linear``."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., O) of (..., I)."""
        return _Linear.apply(input, self.weight, self.bias) if _applies(input) else super().forward(input)


class TransposedLinear(Conv1D):
    """Drop-in for GPT's ``Conv1D``, a linear layer whose weight is (I, O)."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., O) of (..., I)."""
        return _Linear.apply(x, self.weight.T, self.bias) if _applies(x) else super().forward(x)

"""Attention over a packed batch, for the stock models of transformers.

Legend: T tokens of the batch, H heads, D head size; b sequences of a bucket, s its padded length, P = sum of b*s.

A packed batch has no padding, so every linear layer, LayerNorm and activation works on real tokens only. Attention
alone wants padded buckets: sequences of similar length are gathered into a few of them, and only their scores and
values see padding. The gather indices are made once per batch, on the host, and used by every layer. A GPU needs no
padded buckets unless there is dropout (:mod:`bertillery.models.gpu_attention`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from bertillery.engine.layout import PackingLayout
from bertillery.models import gpu_attention
from bertillery.models.dropout import dropout as fast_dropout

NAME = "packed"
"""The value of ``attn_implementation`` under which transformers finds :func:`packed_attention`."""


@dataclass(frozen=True)
class Recorded:
    """What the attention of one layer saw: the rows of the flat batch, before any score."""

    query: Tensor
    """(T, H, D)."""
    key: Tensor
    """(T, H, D)."""
    value: Tensor
    """(T, H, D)."""
    scale: float
    """What the products of queries and keys are multiplied with."""


class _Gather(torch.autograd.Function):
    """Flat rows to cells. Backward gathers too (each row lies in one cell; what padding cells get back is dropped)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gather: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        return rows.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (scatter,) = ctx.saved_tensors
        return grads[0].index_select(0, scatter), None, None


class _Scatter(torch.autograd.Function):
    """Cells back to flat rows; the cells of padding are left behind and get no gradient."""

    @staticmethod
    def forward(ctx: Any, cells: Tensor, gather: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        ctx.num_cells = len(gather)
        return cells.index_select(0, scatter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (scatter,) = ctx.saved_tensors
        cells = grads[0].new_zeros(ctx.num_cells, *grads[0].shape[1:])
        return cells.index_copy_(0, scatter, grads[0]), None, None


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    layout: PackingLayout | None = None,
    record: list[Recorded] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Self-attention of every sequence with itself alone.

    ``query``, ``key``, ``value`` are (1, H, T, D); returns (1, T, H, D) and no weights. ``layout`` reaches this
    function as a keyword argument of the model's ``forward``, and so does ``record``, to which each layer appends.
    """
    assert layout is not None, "call the model with layout=batch.input.layout"
    assert attention_mask is None, "a packed batch has no mask"
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    flat = [x.transpose(1, 2)[0] for x in (query, key, value)]
    if record is not None:
        record.append(Recorded(flat[0], flat[1], flat[2], scale))
    kernel = gpu_attention.kernel_for(query, dropout)
    if kernel == "varlen":
        return gpu_attention.by_varlen(flat[0], flat[1], flat[2], layout.starts, layout.longest, scale)[None], None
    if kernel == "flex":
        return gpu_attention.by_flex(query, key, value, layout.sequence_mask, scale).transpose(1, 2), None
    return _in_padded_buckets(flat, layout, scale, dropout)[None], None


@torch.compiler.disable()  # their number changes from batch to batch, and each would be compiled anew
def _in_padded_buckets(flat: list[Tensor], layout: PackingLayout, scale: float, dropout: float) -> Tensor:
    """Attention (T, H, D) from queries, keys and values (T, H, D)."""
    outputs = []
    for q, k, v, bias in zip(*(padded_buckets(x, layout) for x in flat), layout.biases, strict=True):
        heads = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias, scale, dropout)
        outputs.append(heads.transpose(1, 2).flatten(0, 1).flatten(1))
    cells = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    rows = cells if layout.identity else _apply(_Scatter, cells, layout)
    return rows.view(flat[0].shape)


def padded_buckets(rows: Tensor, layout: PackingLayout) -> list[Tensor]:
    """Flat rows (T, ...) as padded buckets (b, s, ...), of which padding repeats row 0; with gradient."""
    cells = rows if layout.identity else _apply(_Gather, rows.flatten(1), layout)
    parts = cells.split([b * s for b, s in layout.shapes])
    return [part.view(*shape, *rows.shape[1:]) for part, shape in zip(parts, layout.shapes, strict=True)]


def _apply(function: Any, x: Tensor, layout: PackingLayout) -> Tensor:
    return function.apply(x, layout.gather, layout.scatter)


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float) -> Tensor:
    """Scaled dot-product attention of a rectangle, (b, H, s, D) each.

    Batched matrix products in bfloat16 beat the library's fused attention on CPUs, and dropout sends the fused one
    down its slow path there; everywhere else the fused one is used.
    """
    if q.device.type != "cpu" or (q.dtype == torch.float32 and not dropout):
        mask = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
    scores = torch.matmul(q * scale, k.transpose(-1, -2))
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return torch.matmul(fast_dropout(scores.softmax(-1), dropout, training=dropout > 0), v)


AttentionInterface.register(NAME, packed_attention)

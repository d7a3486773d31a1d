"""Attention over a packed batch, for the stock models of transformers.

Legend: T tokens of the batch, H heads, D head size; b sequences of a bucket, s its padded length, P = sum of b*s.

A packed batch has no padding, so every linear layer, LayerNorm and activation works on real tokens only. Attention
alone needs padded buckets: sequences of similar length are gathered into a few of them, and only their scores and
values see padding. The gather indices are made once per batch, on the host, and every layer uses them. A GPU needs
them only where no kernel fits (:mod:`bertillery.models.layers.gpu_attention`).

A module's ``is_causal`` decides between bidirectional and causal attention. What cannot be computed is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from bertillery.config.section import ConfigError
from bertillery.engine.layout import CrossLayout, PackingLayout
from bertillery.models.layers import gpu_attention
from bertillery.models.layers.dropout import dropout as fast_dropout

NAME = "packed"
"""The value of ``attn_implementation`` under which transformers finds :func:`packed_attention`."""


@dataclass(frozen=True)
class Recorded:
    """Queries, keys and values of one layer's attention: rows of the flat batch."""

    query: Tensor
    """(T, H, D)."""
    key: Tensor
    """(T, H, D)."""
    value: Tensor
    """(T, H, D)."""
    scale: float
    """Factor of the products of queries and keys."""


class _Gather(torch.autograd.Function):
    """Flat rows to cells. Backward gathers too: each row lies in one cell, and padding gets no gradient."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gather: Tensor, scatter: Tensor) -> Tensor:
        ctx.save_for_backward(scatter)
        return rows.index_select(0, gather)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (scatter,) = ctx.saved_tensors
        return grads[0].index_select(0, scatter), None, None


class _Scatter(torch.autograd.Function):
    """Cells back to flat rows. Padding cells are dropped and get no gradient."""

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


_WITHOUT_EFFECT = {
    "position_ids": "the embeddings have read them",
    "output_hidden_states": "the model returns them, not its attention",
}
"""Arguments that families hand on to attention, of any value; and why attention need not know them."""
_MUST_BE_OFF = {
    "use_cache": "a cache of keys and values, which generation uses",
    "output_attentions": "attention weights as an output",
    "encoder_hidden_states": "cross attention without cross_layout",
    "sliding_window": "a sliding window",
    "softcap": "soft-capped scores",
    "s_aux": "attention sinks",
    "position_bias": "a bias by relative position",
    "head_mask": "a mask of heads",
}
"""Arguments, or attributes of a module, that must be None or False."""


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
    cross_layout: CrossLayout | None = None,
    is_causal: bool | None = None,
    record: list[Recorded] | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of every sequence to itself, or to the sequence of its number in another stream.

    ``query`` is (1, H, T, D), ``key`` and ``value`` (1, H, T, D) of the same stream or (1, H, S, D) of the other one;
    returns (1, T, H, D) and no weights. Keyword arguments of the model's ``forward`` reach this function: ``layout`` is
    the queries' ``batch.streams[...].layout``, ``cross_layout`` pairs it with the other stream, and each layer appends
    to ``record``. ``is_causal``, by default the module's, means that no token sees a later one of its sequence; cross
    attention is never causal, so a decoder's causal modules read ``layout`` and its others ``cross_layout``.

    Raises ``ConfigError`` for what the module wants and packed attention does not compute, such as grouped queries,
    and ``TypeError`` for an argument that is unknown.
    """
    causal = getattr(module, "is_causal", None) if is_causal is None else is_causal
    crossing = None if causal else cross_layout
    queries, keys = (layout, layout) if crossing is None else (crossing.queries, crossing.keys)
    if queries is None or keys is None:
        raise TypeError("packed attention needs a layout: call the model with layout=batch.input.layout")
    _check_computable(module, query, key, value, attention_mask, causal, others)
    if query.shape[2] != len(queries.scatter) or key.shape[2] != len(keys.scatter):
        raise ValueError(
            f"{query.shape[2]} queries and {key.shape[2]} keys, but the layout has {len(queries.scatter)} and "
            f"{len(keys.scatter)} tokens; give the layout of the same batch, and cross_layout for another stream's keys"
        )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = (x.transpose(1, 2)[0] for x in (query, key, value))
    if record is not None:
        record.append(Recorded(q, k, v, scale))
    if queries.branches is not None:
        if not causal:
            raise ConfigError(f"{type(module).__name__} is not causal; sequences that branch are for decoders")
        return _in_padded_buckets((q, k, v), queries, keys, scale, dropout, causal=False)[None], None
    kernel = gpu_attention.kernel_for(query, dropout)
    if kernel == "varlen":
        starts, longest = (queries.starts, keys.starts), (queries.longest, keys.longest)
        heads = gpu_attention.by_varlen(q, k, v, starts, longest, scale, causal=bool(causal), dropout=dropout)
        return heads[None], None
    if kernel == "flex":
        mask = crossing.sequence_mask if crossing else queries.causal_mask if causal else queries.sequence_mask
        return gpu_attention.by_flex(query, key, value, mask, scale).transpose(1, 2), None
    return _in_padded_buckets((q, k, v), queries, keys, scale, dropout, bool(causal))[None], None


def _check_computable(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    causal: bool | None,
    others: dict[str, Any],
) -> None:
    name = type(module).__name__
    if causal is None:
        raise TypeError(f"{name} does not say whether its attention is causal; set its is_causal to True or False")
    unknown = others.keys() - _WITHOUT_EFFECT.keys() - _MUST_BE_OFF.keys()
    if unknown:
        raise TypeError(f"packed attention does not know {', '.join(sorted(unknown))}, which {name} passes to it")
    given = {"sliding_window": getattr(module, "sliding_window", None)} | others
    asked = [text for key, text in _MUST_BE_OFF.items() if given.get(key) is not None and given[key] is not False]
    asked += ["an attention mask"] * (attention_mask is not None)
    asked += ["grouped queries"] * (getattr(module, "num_key_value_groups", 1) != 1 or query.shape[1] != key.shape[1])
    asked += ["values of another shape than its keys"] * (key.shape != value.shape)
    if asked:
        raise ConfigError(
            f"{name} asks for {', '.join(asked)}, which attention over a packed batch does not compute; "
            "give a model without, or call it without"
        )


@torch.compiler.disable()  # the number of buckets changes from batch to batch, and each would be compiled anew
def _in_padded_buckets(
    flat: tuple[Tensor, ...], queries: PackingLayout, keys: PackingLayout, scale: float, dropout: float, causal: bool
) -> Tensor:
    """Attention (T, H, D) from queries (T, H, D), keys and values (S, H, D)."""
    outputs = []
    buckets = padded_buckets(flat[0], queries), *(padded_buckets(rows, keys) for rows in flat[1:])
    for q, k, v, bias in zip(*buckets, queries.branches or keys.biases, strict=True):
        # Padding is at the end: the causal mask hides it from all tokens.
        bias = None if causal else bias
        heads = _attend(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias, scale, dropout, causal)
        outputs.append(heads.transpose(1, 2).flatten(0, 1).flatten(1))
    cells = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    rows = cells if queries.identity else _apply(_Scatter, cells, queries)
    return rows.view(flat[0].shape)


def padded_buckets(rows: Tensor, layout: PackingLayout) -> list[Tensor]:
    """Flat rows (T, ...) as padded buckets (b, s, ...), of which padding repeats row 0; with gradient."""
    cells = rows if layout.identity else _apply(_Gather, rows.flatten(1), layout)
    parts = cells.split([b * s for b, s in layout.shapes])
    return [part.view(*shape, *rows.shape[1:]) for part, shape in zip(parts, layout.shapes, strict=True)]


def _apply(function: Any, x: Tensor, layout: PackingLayout) -> Tensor:
    return function.apply(x, layout.gather, layout.scatter)


_WORTH_A_KERNEL = 1 << 24
"""Multiplications of a product in bfloat16 on a CPU from which on it is worth the kernel that is made for its shape."""


def _is_small(q: Tensor, k: Tensor) -> bool:
    return q.shape[:-1].numel() * k.shape[-2] * q.shape[-1] < _WORTH_A_KERNEL


def products(q: Tensor, k: Tensor) -> Tensor:
    """Scores (b, H, s, t) of queries (b, H, s, D) with keys (b, H, t, D), in the precision that attention has for them:
    what distillation compares is what the model computes."""
    if q.device.type == "cpu" and _is_small(q, k):
        with torch.autocast("cpu", enabled=False):
            return torch.matmul(q.float(), k.float().transpose(-1, -2))
    return torch.matmul(q, k.transpose(-1, -2))


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, dropout: float, causal: bool) -> Tensor:
    """Scaled dot-product attention of a bucket, (b, H, s, D) each.

    On CPUs, batched matrix products in bfloat16 are faster than the library's fused attention, and dropout makes the
    fused one slow; everywhere else the fused one is used. Small products are made in float32, whose kernels are not
    made anew for every shape.
    """
    if q.device.type != "cpu" or (q.dtype == torch.float32 and not dropout):
        mask = None if bias is None else bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=causal, scale=scale)
    if q.dtype == torch.bfloat16 and _is_small(q, k):
        with torch.autocast("cpu", enabled=False):
            return _attend(q.float(), k.float(), v.float(), bias, scale, dropout, causal).to(q.dtype)
    scores = torch.matmul(q * scale, k.transpose(-1, -2))
    if causal:
        bias = torch.full(scores.shape[-2:], -torch.inf, device=scores.device).triu(1)
    if bias is not None:
        scores = scores + bias.to(scores.dtype)
    return torch.matmul(fast_dropout(scores.softmax(-1), dropout, training=dropout > 0), v)


AttentionInterface.register(NAME, packed_attention)

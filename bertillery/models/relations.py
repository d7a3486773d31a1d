"""What attention distillation compares: the products of queries, keys and values of recorded layers.

Legend: T tokens of the batch, H heads, D head size; b sequences of a rectangle, s its padded length.

Everything comes as one tensor for each rectangle of the batch's layout (``layout.shapes``), before any softmax and with
gradient; teacher and student that read one batch have one layout.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bertillery.config.section import ConfigError
from bertillery.engine.layout import PackingLayout
from bertillery.models.layers.attention import Recorded, padded_buckets, products


def real_cells(layout: PackingLayout) -> list[Tensor]:
    """Which cells (b, s) of the padded buckets are tokens, bool; what the others hold means nothing."""
    return [
        torch.ones(shape, dtype=torch.bool, device=layout.gather.device) if bias is None else bias[:, 0, 0] == 0
        for shape, bias in zip(layout.shapes, layout.biases, strict=True)
    ]


def attention_scores(recorded: Recorded, layout: PackingLayout) -> list[Tensor]:
    """Scores (b, H, s, s) of a layer, queries by keys, scaled as for the softmax (Vaswani et al. 2017, eq. 1).

    TinyBERT compares these (Jiao et al. 2020), MiniLM their softmax (Wang et al. 2020, section 3.1).
    """
    pairs = zip(padded_buckets(recorded.query, layout), padded_buckets(recorded.key, layout), strict=True)
    return [products(q.transpose(1, 2) * recorded.scale, k.transpose(1, 2)) for q, k in pairs]


def relations(rows: Tensor, layout: PackingLayout, num_heads: int) -> list[Tensor]:
    """Scores (b, ``num_heads``, s, s) of recorded queries, keys or values (T, H, D) with themselves.

    The heads are put side by side and cut anew into ``num_heads`` relation heads of d; products are divided by the
    root of d (MiniLMv2, Wang et al. 2021). With H relation heads and values this is the value relation of MiniLM
    (Wang et al. 2020, section 3.2). Raises ``ConfigError`` where the width is not a multiple of ``num_heads``.
    """
    width = rows[0].numel()
    if width % num_heads:
        raise ConfigError(f"{num_heads} relation heads do not divide a width of {width}; give a divisor of it")
    cut = padded_buckets(rows.flatten(1).unflatten(1, (num_heads, -1)), layout)
    return [products(x.transpose(1, 2), x.transpose(1, 2)) * (width // num_heads) ** -0.5 for x in cut]

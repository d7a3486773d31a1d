"""Attention weights of a model on one text, by layer and head.

Legend: L layers, h heads, T tokens that look, S tokens that are looked at.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import Literal

import numpy as np
import torch

from bertillery.models.layers.attention import Recorded
from pages.blocks import Block, Head, Heads, Paragraph

MOST = 64
"""Tokens that are drawn."""
_COLOUR = (56, 139, 235)
"""Seen on light and on dark paper."""


def weights(recorded: Sequence[Recorded], *, causal: bool) -> np.ndarray:
    """The softmax (L, h, T, T) of what the layers of one sequence recorded (Vaswani et al. 2017, eq. 1)."""
    found = []
    for layer in recorded:
        scores = torch.einsum("qhd,khd->hqk", layer.query.float(), layer.key.float()) * layer.scale
        if causal:
            scores = scores + torch.full(scores.shape[-2:], -torch.inf).triu(1)
        found.append(scores.softmax(-1))
    return torch.stack(found).numpy()


def attention_blocks(
    found: Sequence[np.ndarray],
    queries: Sequence[str],
    keys: Sequence[str],
    direction: Literal["all", "earlier", "source"],
) -> Iterator[Block]:
    """The view of all heads, from weights (h, T, S) of each layer."""
    heads = [
        Head(layer, head, _picture(one[:MOST, :MOST]), said(one, keys, direction))
        for layer, each in enumerate(found, 1)
        for head, one in enumerate(each, 1)
    ]
    sees = {"all": "all tokens", "earlier": "itself and earlier tokens", "source": "the tokens of the source"}[
        direction
    ]
    size = f"{len(found)} {'layer' if len(found) == 1 else 'layers'}, {len(heads)} heads"
    yield Heads(f"{size}; each token sees {sees}", queries[:MOST], keys[:MOST], heads, direction)
    if max(len(queries), len(keys)) > MOST:
        yield Paragraph(f"The pictures show the first {MOST} of {max(len(queries), len(keys))} tokens.")


def said(one: np.ndarray, keys: Sequence[str], direction: str) -> str:
    """Where the weights (T, S) of a head lie on the average: at a token, or at a place beside the one that looks."""
    shares = {f"the token {keys[column]}": float(share) for column, share in enumerate(one.mean(0))}
    if direction != "source":
        names = {-1: "the token before", 0: "the token itself", 1: "the token behind"}
        shares |= {name: float(np.trace(one, offset=offset) / len(one)) for offset, name in names.items()}
    name, share = max(shares.items(), key=lambda item: item[1])
    return f"mostly at {name}, {share:.0%}" if share >= 0.3 else f"spread, at most {share:.0%} at {name}"


def _picture(one: np.ndarray) -> str:
    """A PNG of the weights, as alpha, as a data URI."""
    from PIL import Image

    pixels = np.empty((*one.shape, 4), np.uint8)
    pixels[..., :3] = _COLOUR
    pixels[..., 3] = np.rint(np.clip(one, 0, 1) * 255)
    pixels[..., :3] *= pixels[..., 3:] > 0  # transparent pixels alike, so that the file is small
    stream = BytesIO()
    Image.fromarray(pixels, "RGBA").save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"

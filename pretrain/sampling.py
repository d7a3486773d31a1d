"""Words drawn from a model's distributions: what ELECTRA's generator puts in the place of those it was asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_CHUNK = 128


@torch.no_grad()
def sample(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Draw from the softmax of each row of ``logits`` (M, V) by inverting its distribution function; int64 (M,).

    The original adds Gumbel noise, M times V numbers, and takes the largest, which is the same distribution. One
    number to a row, ``uniforms`` (M,) in [0, 1), can belong to the example, so that what is drawn does not depend on
    batch or process. Sums are in float64, over chunks of the vocabulary and then in the one that was hit: the sum of
    30,000 float32 probabilities would be off by more than many of them.
    """
    shares = logits.float().softmax(-1)
    chunks = F.pad(shares, (0, -shares.shape[1] % _CHUNK)).unflatten(1, (-1, _CHUNK))
    masses = chunks.sum(-1).double()
    chunk, rest = _invert(masses, uniforms.double())
    within, _ = _invert(chunks[torch.arange(len(chunk), device=chunk.device), chunk].double(), rest)
    return chunk * _CHUNK + within


def _invert(masses: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """The cell of each row (M, C) that the uniform number falls into, and how far into it, in [0, 1)."""
    ends = masses.cumsum(-1)
    wanted = (uniforms * ends[:, -1])[:, None]
    cell = torch.searchsorted(ends, wanted, right=True).clamp(max=masses.shape[1] - 1)
    mass = masses.gather(1, cell)
    depth = (wanted - ends.gather(1, cell) + mass) / mass
    return cell[:, 0], depth[:, 0].clamp(0, 1 - 2.0**-40)

"""Initial weights."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def truncated_normal_(tensor: Tensor, std: float) -> Tensor:
    """Fill with a normal distribution of mean 0 whose draws beyond two deviations are drawn again, as TensorFlow's
    ``truncated_normal_initializer`` does, in place.

    Torch's own ``trunc_normal_`` draws other numbers in one version than in another, so that a seed would not be one.
    """
    tensor.normal_(0.0, std)
    while not tensor.is_meta and (outside := tensor.abs() > 2 * std).any():
        tensor.copy_(torch.where(outside, torch.empty_like(tensor).normal_(0.0, std), tensor))
    return tensor

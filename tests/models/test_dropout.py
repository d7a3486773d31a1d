"""Dropout in training: its distribution, its seed, and that it changes nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from bertillery.models.layers.dropout import dropout


def test_dropout_keeps_expectation_and_scales_gradient() -> None:
    torch.manual_seed(0)
    x = torch.ones(1_000_001, requires_grad=True)
    y = dropout(x, 0.1, training=True)
    dropped = (y == 0).float().mean().item()
    assert dropped == pytest.approx(0.1, abs=3 * np.sqrt(0.09 / 1e6))
    assert y.mean().item() == pytest.approx(1, abs=0.002)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, y.detach())
    assert dropout(x, 0.1, training=False) is x


def test_dropout_is_seeded_by_torch() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return dropout(torch.ones(999), 0.5, training=True)

    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))

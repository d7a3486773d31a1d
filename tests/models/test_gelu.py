"""The tanh form of GELU beside torch's."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bertillery.models.layers import gelu
from bertillery.models.layers.gelu import TanhGelu


@pytest.mark.parametrize(("kind", "close"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float64, 1e-12)])
def test_values_and_slopes_are_torchs(kind: torch.dtype, close: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gelu, "_IN_CACHE", 1000)
    x = torch.linspace(-12, 12, 3 * 7 * 101).view(3, 7, 101).to(kind)
    x[0, 0, :4] = torch.tensor([0.0, 1e4, -1e4, -0.0])
    weights = torch.linspace(-1, 2, x.numel()).view(x.shape).to(kind)
    found = []
    for function in (TanhGelu(), lambda x: F.gelu(x, approximate="tanh")):
        given = x.clone().requires_grad_()
        out = function(given)
        out.backward(weights)
        found.append((out.detach(), given.grad))
    for mine, theirs in zip(*found, strict=True):
        assert mine.dtype == kind
        torch.testing.assert_close(mine, theirs, rtol=close, atol=close)
    assert torch.equal(TanhGelu()(x), found[0][0])


def test_what_does_not_lie_end_to_end() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).T
    torch.testing.assert_close(TanhGelu()(x), F.gelu(x, approximate="tanh"))

"""The tanh form of GELU beside torch's; in bfloat16, where it is looked up, to the last bit."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bertillery.models.layers import gelu
from bertillery.models.layers.gelu import TanhGelu


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16, torch.float64])
def test_values_and_slopes_are_torchs(kind: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked out in float64, from all numbers of bfloat16 between -1e30 and 1e30, and rounded once where looked up."""
    monkeypatch.setattr(gelu, "_IN_CACHE", 1000)
    x = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    x = x[x.abs() < 1e30].to(kind)[None]
    given, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    out, expected = TanhGelu()(given), F.gelu(exact, approximate="tanh")
    out.backward(torch.ones_like(out))
    expected.sum().backward()
    assert given.grad is not None
    assert exact.grad is not None
    assert out.dtype == given.grad.dtype == kind
    if kind == torch.bfloat16:
        assert torch.equal(out, expected.bfloat16())
        assert torch.equal(given.grad, exact.grad.bfloat16())
    usual = x.abs() < 100  # further out torch's own slope overflows in float32
    torch.testing.assert_close(out, expected.to(kind))
    torch.testing.assert_close(given.grad[usual], exact.grad.to(kind)[usual])
    assert torch.equal(TanhGelu()(x), out)


def test_what_does_not_lie_end_to_end() -> None:
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(0)).T
    torch.testing.assert_close(TanhGelu()(x), F.gelu(x, approximate="tanh"))

"""Divergence over a vocabulary: torch's values and gradients, in pieces of any size, and what it makes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from bertillery.models.layers import divergence
from bertillery.models.layers.divergence import divergences


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize(("kind", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
@pytest.mark.parametrize("piece", [1, 120, 1 << 20])
def test_values_and_gradients_are_torchs(
    temperature: float, kind: torch.dtype, close: float, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(divergence, "_IN_CACHE", piece)
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(2, 7, 50, generator=generator)).to(kind).unbind()
    weights = torch.linspace(-1, 2, 7)

    def exact(student: torch.Tensor) -> torch.Tensor:
        mine, theirs = (F.log_softmax(x.float() / temperature, -1) for x in (student, teacher))
        return F.kl_div(mine, theirs, reduction="none", log_target=True).sum(-1)

    found = []
    for function in (lambda x: divergences(x, teacher, temperature), exact):
        given = student.clone().requires_grad_()
        values = function(given)
        (values * weights).sum().backward()
        found.append((values.detach(), given.grad))
    (mine, slope), (theirs, expected) = found
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(slope, expected, rtol=close, atol=close)


def test_a_distribution_does_not_diverge_from_itself() -> None:
    logits = 30 * torch.randn(5, 40, generator=torch.Generator().manual_seed(0))
    given = logits.clone().requires_grad_()
    values = divergences(given, logits + 3)
    torch.testing.assert_close(values, torch.zeros(5), atol=1e-5, rtol=0)
    values.sum().backward()
    torch.testing.assert_close(given.grad, torch.zeros(5, 40), atol=1e-6, rtol=0)
    assert (divergences(logits.flip(1), logits) > 0).all()


def test_what_is_not_finite_shows() -> None:
    logits = torch.zeros(3, 4)
    broken = logits.clone()
    broken[1, 2] = torch.nan
    assert [value.isfinite().item() for value in divergences(broken, logits)] == [True, False, True]
    assert [value.isfinite().item() for value in divergences(logits, broken)] == [True, False, True]

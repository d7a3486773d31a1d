"""Sums over chunks of rows equal those over all of them, and hold one chunk at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from engine.chunks import sums_over_chunks


def parts() -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    head, unused = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 11)), nn.Linear(2, 2)
    head[0].bias.requires_grad_(False)
    return head, unused, torch.randn(10, 6, requires_grad=True), torch.randint(11, (10,))


@pytest.mark.parametrize("rows", [1, 3, 5, 9])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_values_and_gradients_are_those_of_all_rows(rows: int, precision: torch.dtype) -> None:
    found = []
    for size in (10, rows):
        head, unused, hidden, words = parts()
        seen = []

        def sums(hidden: Tensor, words: Tensor, head: nn.Module = head, seen: list[int] = seen) -> Tensor:
            seen.append(len(hidden))
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
                logits = head(hidden).float()
            right = (logits.detach().argmax(-1) == words).sum()
            return torch.stack([F.cross_entropy(logits, words, reduction="sum"), right])

        total = sums_over_chunks(sums, [hidden, words], [*head.parameters(), *unused.parameters()], size)
        (total[0] * 0.25 + hidden.sum()).backward()
        assert max(seen) <= size
        assert sum(seen) == 10, "nothing is computed twice"
        assert unused.weight.grad is None
        assert head[0].bias.grad is None
        found.append([total.detach(), hidden.grad, *(p.grad for p in head.parameters() if p.requires_grad)])
    tolerance = 1e-5 if precision == torch.float32 else 2e-2
    torch.testing.assert_close(found[0], found[1], rtol=tolerance, atol=tolerance)


def test_without_gradients_there_are_values() -> None:
    head, _, hidden, _ = parts()
    with torch.no_grad():
        total = sums_over_chunks(lambda rows: head(rows).sum()[None], [hidden], [*head.parameters()], 4)
    torch.testing.assert_close(total, head(hidden).sum()[None])
    assert not total.requires_grad


def test_a_frozen_input_has_no_gradient() -> None:
    head, _, hidden, _ = parts()
    frozen = hidden.detach()
    sums_over_chunks(lambda rows: head(rows).sum()[None], [frozen], [*head.parameters()], 4).sum().backward()
    assert frozen.grad is None
    assert head[1].weight.grad is not None

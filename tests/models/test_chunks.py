"""Logits in chunks: the same numbers, and never more of them at a time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bertillery.engine.loop import share_of_loss
from bertillery.engine.objective import Objective, objective_module
from bertillery.models.layers import chunks
from bertillery.models.layers.chunks import in_chunks, word_sums
from pretrain.objectives import electra
from tests.pretrain.test_masked_objectives import word_head
from tests.pretrain.test_objectives import OBJECTIVES, TINY, batch_of, make

VOCABULARY, ROWS = 50, 23


def run(most: int, monkeypatch: pytest.MonkeyPatch, head: nn.Module) -> list[Tensor]:
    monkeypatch.setattr(chunks, "LOGITS", most)
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, 8, generator=generator).requires_grad_()
    words = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    loss, right = word_sums(head, hidden, words, parameters=head.parameters(), vocab_size=VOCABULARY)
    loss.backward()
    assert hidden.grad is not None
    return [loss.detach(), right, hidden.grad]


def head_of(rows: list[int]) -> nn.Linear:
    torch.manual_seed(0)
    head = nn.Linear(8, VOCABULARY)
    head.register_forward_hook(lambda _, __, output: rows.append(len(output)))
    return head


@pytest.mark.parametrize("number", [1, 7, 22])
def test_chunks_change_rounding_alone(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    rows: list[int] = []
    whole, parts = head_of([]), head_of(rows)
    expected, found = run(10**9, monkeypatch, whole), run(number * VOCABULARY + 1, monkeypatch, parts)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    for mine, theirs in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-5, atol=1e-6)
    assert max(rows) == number
    assert sum(rows) == ROWS, "nothing is computed again in the backward pass"


def test_one_chunk_is_the_plain_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    loss, right, gradient = run(ROWS * VOCABULARY, monkeypatch, head_of(rows))
    assert rows == [ROWS]
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(ROWS, 8, generator=generator).requires_grad_()
    words = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    logits = head_of([])(hidden)
    plain = F.cross_entropy(logits, words, reduction="sum")
    plain.backward()
    torch.testing.assert_close(loss, plain.detach())
    assert right == (logits.argmax(-1) == words).sum()
    assert hidden.grad is not None
    torch.testing.assert_close(gradient, hidden.grad)


def test_what_is_beside_the_loss_comes_chunk_by_chunk() -> None:
    def sums(rows: Tensor) -> tuple[Tensor, Tensor]:
        return rows.sum(), rows.argmax(-1)

    for rows in (torch.eye(5), torch.eye(5, requires_grad=True)):
        total, others = in_chunks(sums, rows, parameters=(), width=10, most=29)
        assert total == 5
        assert [other.tolist() for other in others] == [[0, 1], [2, 3], [4]]
    (total,) = in_chunks(lambda rows: (rows.sum(),), torch.ones(0, 2), parameters=(), width=10, most=29)
    assert total == 0, "there is a sum of nothing"
    _, others = in_chunks(sums, torch.eye(2), parameters=(), width=10, most=3)
    assert len(others) == 2, "a row, however wide"


def test_only_what_is_trained_and_used_has_a_gradient() -> None:
    torch.manual_seed(0)
    head, unused, frozen = nn.Linear(4, 5), nn.Linear(2, 2), torch.randn(9, 4)
    head.bias.requires_grad_(False)
    parameters = [*head.parameters(), *unused.parameters()]
    in_chunks(lambda rows: (head(rows).sum(),), frozen, parameters=parameters, width=1, most=4)[0].backward()
    assert frozen.grad is None
    assert head.bias.grad is None
    assert unused.weight.grad is None
    torch.testing.assert_close(head.weight.grad, frozen.sum(0).expand(5, 4))


@pytest.mark.parametrize("most", [10**9, 7 * VOCABULARY])
def test_the_gradient_is_scaled_as_the_loss_is(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks, "LOGITS", most)
    torch.manual_seed(0)
    head, hidden = head_of([]), torch.randn(ROWS, 8)
    found = []
    for share in (1.0, 0.25):
        head.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = word_sums(
                head, hidden, torch.zeros(ROWS).long(), parameters=head.parameters(), vocab_size=VOCABULARY
            )
        (share * loss).backward()
        assert head.weight.grad is not None
        found.append(head.weight.grad / share)
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-2)


def passed(objective: Objective, batch: Any) -> tuple[dict[str, Tensor], Tensor]:
    torch.manual_seed(3)
    terms = objective(batch)
    objective.zero_grad()
    share_of_loss(terms, batch.counts).backward()
    gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
    return {name: term.total.detach() for name, term in terms.items()}, gradient


@pytest.mark.parametrize("name", OBJECTIVES)
def test_objectives_hold_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """With dropout in the encoder, and samples of the generator that are the same."""
    objective, source = make(objective_module("pretrain.objectives", {"type": name}), TINY)
    batch, rows = batch_of(source), []
    expected, gradient = passed(objective.train(), batch)
    vocab_size = word_head(objective).out_features
    for module in (chunks, electra):
        monkeypatch.setattr(module, "LOGITS", 9 * vocab_size)
    with word_head(objective).register_forward_hook(lambda _, __, output: rows.append(len(output))):
        found, other = passed(objective, batch)
    predicted = batch.counts.get("masked", batch.counts["tokens"])
    assert max(rows) == 9 < predicted
    assert sum(rows) == predicted
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (other - gradient).norm() / gradient.norm() < 1e-5

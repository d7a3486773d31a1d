"""Cross-entropy in the cache: torch's losses and gradients, and how many tensors of the logits' size it makes."""

from __future__ import annotations

import math
from typing import Any, cast

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from bertillery.models.layers import cross_entropy
from bertillery.models.layers.cross_entropy import cross_entropies
from bertillery.models.layers.divergence import divergences

ROWS, VOCABULARY = 13, 500
_LAST_BIT = {torch.bool: 0.0, torch.float32: 1e-6, torch.bfloat16: 2**-7}


def drawn(spread: float = 4.0, kind: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = (spread * torch.randn(ROWS, VOCABULARY, generator=generator)).to(kind).requires_grad_()
    return logits, torch.randint(VOCABULARY, (ROWS,), generator=generator)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("kind", "close"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_losses_and_gradients_are_torchs(smoothing: float, kind: torch.dtype, close: float) -> None:
    """With a weight for each row; in 16 bits the gradient is rounded once more here or there."""
    logits, words = drawn(kind=kind)
    weights = torch.linspace(-1, 2, ROWS)
    found = cross_entropies(logits, words, smoothing)
    (mine,) = torch.autograd.grad((found.losses * weights).sum(), logits)
    expected = F.cross_entropy(logits.float(), words, reduction="none", label_smoothing=smoothing)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), logits)
    assert mine.dtype == kind
    torch.testing.assert_close(found.losses, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=close, atol=close)
    torch.testing.assert_close(found.plain, F.cross_entropy(logits.float(), words, reduction="none"))
    assert not found.plain.requires_grad


def test_a_weight_is_not_rounded_to_16_bits() -> None:
    """This one would be too small by .2 %, and with it the whole gradient; of divergences, too."""
    weight = 1 / 307
    logits, words = drawn(kind=torch.bfloat16)
    teacher, _ = drawn(spread=2.0)
    for losses in (cross_entropies(logits, words).losses, divergences(logits, teacher.detach())):
        one, scaled = (torch.autograd.grad(losses.sum() * by, logits, retain_graph=True)[0] for by in (1.0, weight))
        assert (scaled.double() / one.double()).mean().item() == pytest.approx(weight, rel=5e-4)


@pytest.mark.parametrize("others", [False, True])
def test_the_gradient_is_that_of_the_smoothed_loss(others: bool) -> None:
    logits, words = drawn()
    (found,) = torch.autograd.grad(cross_entropies(logits, words, 0.1, others=others).losses.sum(), logits)
    target = torch.full((ROWS, VOCABULARY), 0.1 / (VOCABULARY - others))
    target[torch.arange(ROWS), words] = 0.9 if others else 0.9 + 0.1 / VOCABULARY
    torch.testing.assert_close(found, logits.softmax(-1) - target)


@pytest.mark.parametrize(
    ("size", "everywhere", "others"), [(8_000, 1.22365, 1.22379), (4_000, 1.15420, 1.15446), (37_000, 1.37691, 1.37695)]
)
def test_the_least_loss_is_the_entropy_of_the_smoothed_target(size: int, everywhere: float, others: float) -> None:
    """fidelity of label smoothing of .1 for three vocabularies, with the mass on all tokens and on the others."""
    words = torch.zeros(1, dtype=torch.long)
    for over_others, expected in ((False, everywhere), (True, others)):
        rest = 0.1 / (size - 1) if over_others else 0.1 / size
        best = torch.full((1, size), math.log(rest), dtype=torch.float64)
        best[0, 0] = math.log(0.9 if over_others else 0.9 + rest)
        assert cross_entropies(best, words, 0.1, others=over_others).losses.item() == pytest.approx(expected, abs=6e-6)
        nearby = best + 0.01 * torch.randn(best.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        assert cross_entropies(nearby, words, 0.1, others=over_others).losses.item() > expected - 1e-6


def test_a_uniform_prediction_loses_the_logarithm_of_the_vocabulary() -> None:
    logits, words = torch.zeros(3, VOCABULARY), torch.tensor([0, 7, 499])
    for others in (False, True):
        found = cross_entropies(logits, words, 0.1, others=others)
        torch.testing.assert_close(torch.stack(found[:2]), torch.full((2, 3), math.log(VOCABULARY)))


@pytest.mark.parametrize("spread", [1e-30, 1e4, 1e30])
def test_logits_of_any_size_have_a_finite_loss(spread: float) -> None:
    logits, words = drawn(spread)
    found = cross_entropies(logits, words)
    torch.testing.assert_close(found.losses, F.cross_entropy(logits, words, reduction="none"))
    (gradient,) = torch.autograd.grad(found.losses.sum(), logits)
    assert gradient.isfinite().all()


def test_among_equal_logits_the_first_is_the_guess() -> None:
    """bfloat16 has many of them."""
    logits, _ = drawn(kind=torch.bfloat16)
    logits = logits.detach().round()
    assert ((logits == logits.amax(-1, keepdim=True)).sum(-1) > 1).any()
    first = logits.argmax(-1)
    assert cross_entropies(logits, first).right.all()
    assert not cross_entropies(logits, (first + 1) % VOCABULARY).right.any()


def test_what_is_not_finite_shows() -> None:
    logits, words = drawn()
    for value in (math.nan, math.inf):
        broken = logits.detach().clone()
        broken[3, 5] = value
        losses = cross_entropies(broken, words).losses
        assert not losses[3].isfinite()
        assert losses[4:].isfinite().all()


def test_the_backward_pass_leaves_the_logits_as_they_are() -> None:
    logits, words = drawn()
    loss = cross_entropies(logits, words, 0.1).losses.sum()
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_how_many_rows_are_worked_on_at_a_time_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, kind: torch.dtype, smoothing: float
) -> None:
    """But a last bit: numbers that fill no vector of the processor are another function's."""
    logits, words = drawn(kind=kind)
    words[::2] = logits.detach().argmax(-1)[::2]
    results = []
    for number in (1, 3 * VOCABULARY, ROWS * VOCABULARY):
        monkeypatch.setattr(cross_entropy, "_IN_CACHE", number)
        found = cross_entropies(logits, words, smoothing)
        results.append([*found, *torch.autograd.grad(found.losses.sum(), logits)])
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            torch.testing.assert_close(another, one, rtol=_LAST_BIT[one.dtype], atol=1e-6)


class _Large(TorchDispatchMode):
    """Counts new tensors of the logits' size."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        known = {each.data_ptr() for each in args if isinstance(each, Tensor)}
        if isinstance(found, Tensor) and found.numel() == ROWS * VOCABULARY and found.data_ptr() not in known:
            self.made.append(str(func))
        return found


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_the_gradient_and_its_weighted_copy_are_all_that_is_made(
    monkeypatch: pytest.MonkeyPatch, kind: torch.dtype
) -> None:
    """Not even a copy of 16 bits in 32; the logits need not be kept for the backward pass."""
    monkeypatch.setattr(cross_entropy, "_IN_CACHE", 2 * VOCABULARY)
    logits, words = drawn(kind=kind)
    with _Large() as mine:
        loss = cross_entropies(logits, words, 0.1).losses.sum()
    assert len(mine.made) == 1, mine.made
    node = loss.grad_fn
    assert node is not None
    (kept,) = cast(Any, node.next_functions[0][0]).saved_tensors
    assert kept.data_ptr() != logits.data_ptr()
    with mine:
        loss.backward()
    assert len(mine.made) == 2, mine.made
    with _Large() as theirs:
        F.cross_entropy(logits.float(), words, reduction="sum").backward()
    assert len(theirs.made) > 2, theirs.made


def test_without_a_gradient_none_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_IN_CACHE", 2 * VOCABULARY)
    logits, words = drawn()
    with _Large() as made:
        cross_entropies(logits.detach(), words)
    assert made.made == []


def test_the_place_of_the_largest_is_looked_for_only_where_it_may_be_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, words = drawn()
    words[4] = logits.detach()[4].argmax()
    sought: list[int] = []
    argmax = Tensor.argmax
    monkeypatch.setattr(Tensor, "argmax", lambda x, dim: sought.append(len(x)) or argmax(x, dim))
    assert cross_entropies(logits, words).right.sum() == 1
    assert sought == [1]

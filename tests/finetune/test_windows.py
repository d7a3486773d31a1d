from __future__ import annotations

import numpy as np
import pytest

from finetune.task_types.windows import best_span, most_context, windows


def run_squad_windows(length: int, room: int, stride: int) -> list[tuple[int, int]]:
    """The original's loop."""
    found, start = [], 0
    while True:
        size = min(length - start, room)
        found.append((start, size))
        if start + size == length:
            return found
        start += min(size, stride)


@pytest.mark.parametrize("stride", [1, 3, 8, 50])
@pytest.mark.parametrize("room", [1, 5, 8, 20])
def test_windows_are_the_originals(room: int, stride: int) -> None:
    lengths = np.arange(1, 60)
    number, starts, sizes = windows(lengths, np.full(59, room), stride)
    got = np.split(np.stack([starts, sizes], 1), np.cumsum(number)[:-1])
    for length, each in zip(lengths, got, strict=True):
        assert list(map(tuple, each.tolist())) == run_squad_windows(length, room, stride)
        covered = np.zeros(length, bool)
        for start, size in each:
            covered[start : start + size] = True
        assert covered.all()


def test_an_empty_context_has_an_empty_window() -> None:
    assert [part.tolist() for part in windows(np.array([0, 3]), np.array([4, 4]), 2)] == [[1, 1], [0, 0], [0, 3]]


@pytest.mark.parametrize(
    ("length", "room", "stride"), [(30, 10, 4), (31, 10, 3), (12, 10, 10), (9, 10, 4), (45, 20, 7)]
)
def test_every_token_has_one_window_of_most_context(length: int, room: int, stride: int) -> None:
    _, starts, sizes = windows(np.array([length]), np.array([room]), stride)
    owner = np.full(length, -1)
    for i, (start, mine) in enumerate(zip(starts, most_context(starts, sizes), strict=True)):
        assert (owner[start : start + len(mine)][mine] == -1).all()
        owner[start : start + len(mine)][mine] = i
    for token in range(length):
        inside = [i for i, (a, n) in enumerate(zip(starts, sizes, strict=True)) if a <= token < a + n]
        context = {i: min(token - starts[i], starts[i] + sizes[i] - 1 - token) + 0.01 * sizes[i] for i in inside}
        assert owner[token] == max(inside, key=lambda i: (context[i], -i))


@pytest.mark.parametrize("seed", range(6))
def test_the_best_span_is_the_best_of_all(seed: int) -> None:
    rng = np.random.default_rng(seed)
    logits, first = rng.normal(size=(40, 2)), 7
    allowed = rng.random(28) < 0.7
    for n_best in (4, 40):
        starts, ends = (set(np.argsort(-logits[:, side])[:n_best].tolist()) for side in (0, 1))
        spans = {
            (a, b): logits[first + a, 0] + logits[first + b, 1]
            for a in range(28)
            for b in range(a, min(28, a + 5))
            if allowed[a] and first + a in starts and first + b in ends
        }
        found = best_span(logits, first, allowed, answer_length=5, n_best=n_best)
        wanted = max(spans, key=spans.__getitem__, default=None)
        assert (None if found is None else (found.first, found.last)) == wanted
        if found is not None:
            scores = np.array([*spans.values()])
            assert (found.score, found.total) == pytest.approx((scores.max(), np.log(np.exp(scores).sum())))


def test_no_span_where_the_context_is_not_among_the_best() -> None:
    logits = np.zeros((6, 2))
    logits[:3] = 9
    assert best_span(logits, 3, np.ones(2, bool), answer_length=3, n_best=3) is None

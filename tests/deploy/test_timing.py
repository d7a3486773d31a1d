"""Rounds of several sides, by a clock that only moves when a side is called."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from deploy import timing as speed
from deploy.timing import side_by_side, speed_rows


class Clock:
    """Time that passes only when a side is called."""

    def __init__(self) -> None:
        self.now, self.called = 0.0, []

    def perf_counter(self) -> float:
        return self.now

    def side(self, name: str, *seconds: float) -> Any:
        durations = itertools.cycle(seconds)

        def call() -> None:
            self.called.append(name)
            self.now += next(durations)

        return call


def test_sides_take_turns_and_ratios_are_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    # Two calls warm up, then a call is a turn; the third round of both is slow, as on a machine that is disturbed.
    sides = {"a": clock.side("a", 4, 4, 4, 4, 40, 4, 4), "b": clock.side("b", 9, 9, 2, 2, 20, 1, 8)}
    measured = side_by_side(sides, length=7, batch_size=3, rounds=5)
    assert clock.called == [*"aabb", *"ababababab"]
    assert measured.seconds == {"a": [4, 4, 40, 4, 4], "b": [2, 2, 20, 1, 8]}
    assert measured.ratios("b") == [2, 2, 2, 4, 0.5]
    assert speed_rows([measured], "teacher")[1:] == [
        ["7", "3", "a", "4,000.00", "0.8", "1", "", ""],
        ["7", "3", "b", "2,000.00", "1.5", "2.00", "0.50", "4.00"],
    ]


def test_a_turn_repeats_a_short_call(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(speed, "time", clock)
    measured = side_by_side({"a": clock.side("a", 0.03125)}, length=7, batch_size=1, rounds=5)
    assert measured.seconds == {"a": [0.03125] * 5}
    assert len(clock.called) == 2 + 5 * round(0.2 / 0.03125)

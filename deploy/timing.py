"""How fast several models are, side by side: rounds alternate over them, so that what slows the machine slows all."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from bertillery.config.section import Section
from bertillery.config.types import Runs, Tokens

_TURN = 0.2
"""Seconds of a side's turn in a round, about; one call where that takes longer."""


class SpeedSection(Section):
    """What is measured."""

    lengths: list[Tokens] = Field(default=[32, 128], min_length=1)
    """Tokens of a sequence; no more than the models take."""
    batch_sizes: list[Runs] = Field(default=[1, 32], min_length=1)
    """Sequences at a time: 1 is for latency, more for throughput."""
    rounds: int = Field(default=5, ge=5, le=10_000)
    """Turns of each model; the table has the median, and the smallest and the largest ratio."""

    def fitting(self, longest: int) -> tuple[list[int], list[str]]:
        """The lengths, none above ``longest``, and a note for the reader where that cut one."""
        cut = [length for length in self.lengths if length > longest]
        notes = [f"No length above {longest} was measured, the longest sequence that all models take."] if cut else []
        return sorted({min(length, longest) for length in self.lengths}), notes


@dataclass(frozen=True)
class Speed:
    """What each side took for a batch of one shape, round by round."""

    length: int
    batch_size: int
    seconds: dict[str, list[float]]
    """For a batch, by side; the first side is what the others are compared with."""

    @property
    def base(self) -> str:
        """What the others are compared with."""
        return next(iter(self.seconds))

    def median(self, side: str) -> float:
        """Seconds for a batch."""
        return statistics.median(self.seconds[side])

    def ratios(self, side: str) -> list[float]:
        """How many times as fast as the base a side was, in each round."""
        return [base / own for base, own in zip(self.seconds[self.base], self.seconds[side], strict=True)]

    def as_json(self) -> dict[str, Any]:
        """Everything measured, and what the table shows of it."""
        shown = {
            side: {
                "seconds": seconds,
                "median_seconds": self.median(side),
                "examples_per_second": self.batch_size / self.median(side),
                "times_as_fast": statistics.median(self.ratios(side)),
                "smallest": min(self.ratios(side)),
                "largest": max(self.ratios(side)),
            }
            for side, seconds in self.seconds.items()
        }
        return {"length": self.length, "batch_size": self.batch_size, "sides": shown}


def side_by_side(
    sides: Mapping[str, Callable[[], object]],
    *,
    length: int,
    batch_size: int,
    rounds: int,
    wait: Callable[[], object] = lambda: None,
) -> Speed:
    """Time the calls of each side in turns A B C A B C ..., after two of each for warming up.

    A turn repeats a short call until the clock is no matter. ``wait`` returns when a device has done what it was given.
    """
    calls: dict[str, int] = {}
    for side, call in sides.items():
        _timed(call, 1, wait)
        calls[side] = max(1, round(_TURN / _timed(call, 1, wait)))
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(rounds):
        for side, call in sides.items():
            seconds[side].append(_timed(call, calls[side], wait))
    return Speed(length, batch_size, seconds)


def _timed(call: Callable[[], object], calls: int, wait: Callable[[], object]) -> float:
    """Seconds a call."""
    wait()
    started = time.perf_counter()
    for _ in range(calls):
        call()
    wait()
    return (time.perf_counter() - started) / calls


def speed_rows(speeds: Sequence[Speed], base: str) -> list[list[str]]:
    """Rows of a table, the head first, a row for each shape and side; ``base`` is what the first side is called."""
    rows = [["length", "batch", "model", "ms a batch", "examples/s", f"x {base}", "smallest", "largest"]]
    for speed in speeds:
        for side, shown in speed.as_json()["sides"].items():
            keys = ("times_as_fast", "smallest", "largest")
            ratios = ["1", "", ""] if side == speed.base else [f"{shown[key]:.2f}" for key in keys]
            milliseconds, per_second = 1e3 * shown["median_seconds"], shown["examples_per_second"]
            shape = [str(speed.length), str(speed.batch_size)]
            rows.append([*shape, side, f"{milliseconds:,.2f}", f"{per_second:,.1f}", *ratios])
    return rows

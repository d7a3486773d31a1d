"""Two ways of doing the same, in turns: ratios of what each gets done in a second.

Every side is a process of its own, so that neither's settings of the memory allocator are the other's. In every round
all sides get the same items one after the other, and a ratio is that of their seconds in one round: what slows the
machine down slows all. What they say they worked on must be alike. Padding is nobody's token.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

import torch

Step = Callable[[Any], Callable[[], int]]
"""An item, such as rows of a plan, to what is timed, which returns how much was worked on. What is made of the item
before is what a data set on disk would hold."""
Build = Callable[[], Step]
Clock = Literal["CPU", "wall"]
_CLOCKS: dict[Clock, Callable[[], float]] = {"CPU": time.process_time, "wall": time.perf_counter}
T = TypeVar("T")


def _whole(item: Any) -> Any:
    return item


@dataclass(frozen=True)
class Contest:
    """What is done in several ways."""

    name: str
    ours: Mapping[str, Build]
    theirs: Mapping[str, Build]
    items: Iterator[Any]
    """Without end."""
    steps: int = 1
    """Items in a turn."""
    part: Callable[[Any], Any] = _whole
    """As much of an item as warms up what keeps no memory from step to step."""
    unit: Literal["tokens", "times"] = "tokens"
    clock: Clock | None = None
    """CPU-seconds with one thread and wall-clock seconds with more, where not given."""
    threaded: bool = True
    """Whether more threads could matter; without it there is one measurement, on one thread."""
    seconds: float = 5.0
    """What a round took on the machine of :data:`benchmarks.sizes.REFERENCE`."""


@dataclass(frozen=True)
class Ratio:
    """Ours against one baseline over the rounds."""

    contest: str
    threads: int
    clock: Clock
    unit: str
    ours: str
    baseline: str
    per_round: list[float]
    """How many times as fast as the baseline."""
    rates: tuple[float, float]
    """Units in a second, ours and the baseline's; medians."""

    @property
    def median(self) -> float:
        """The ratio."""
        return statistics.median(self.per_round)

    @property
    def name(self) -> str:
        """Key in the results."""
        threads = f"/{self.threads} threads" if self.threads > 1 else ""
        return f"{self.contest}{threads}/{self.ours}/{self.baseline}"


def measure(contest: Contest, rounds: int, threads: int = 1) -> list[Ratio]:
    """All of ours against all baselines."""
    clock: Clock = contest.clock or ("CPU" if threads == 1 else "wall")
    ours = {label: _Side(build, clock, threads) for label, build in contest.ours.items()}
    theirs = {label: _Side(build, clock, threads) for label, build in contest.theirs.items()}
    sides = [*ours.values(), *theirs.values()]
    # Ours holds on to memory, so its first two items pay for all pages; a baseline pays for large blocks in each.
    for side in ours.values():
        side.turn([next(contest.items), next(contest.items)])
    for side in theirs.values():
        side.turn([contest.part(next(contest.items))])
    for side in sides:
        side.seconds.clear()
    worked = []
    for _ in range(rounds):
        items = [next(contest.items) for _ in range(contest.steps)]
        amounts = [side.turn(items) for side in sides]
        assert len({*amounts}) == 1, f"{contest.name}: the sides worked on different amounts: {amounts}"
        worked.append(amounts[0])
    for side in sides:
        side.end()
    return [
        Ratio(
            contest.name,
            threads,
            clock,
            contest.unit,
            our,
            their,
            [b / a for a, b in zip(ours[our].seconds, theirs[their].seconds, strict=True)],
            (ours[our].rate(worked), theirs[their].rate(worked)),
        )
        for our, their in itertools.product(ours, theirs)
    ]


class _Side:
    def __init__(self, build: Build, clock: Clock, threads: int) -> None:
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, clock, threads, there), daemon=True)
        self._process.start()
        there.close()
        self.seconds: list[float] = []

    def turn(self, items: list[Any]) -> int:
        """Have the items worked on, note the seconds, and return the amount."""
        try:
            self._here.send(items)
            seconds, amount = self._here.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("a side ended with the error above") from None
        self.seconds.append(seconds)
        return amount

    def rate(self, worked: list[int]) -> float:
        """Median of units in a second, given those of each turn."""
        return statistics.median(amount / spent for amount, spent in zip(worked, self.seconds, strict=True))

    def end(self) -> None:
        """Free the memory."""
        self._here.send(None)
        self._process.join()


def _serve(build: Build, clock: Clock, threads: int, connection: Connection) -> None:
    torch.set_num_threads(threads)
    prepare, now = build(), _CLOCKS[clock]
    while (items := connection.recv()) is not None:
        steps = [prepare(item) for item in items]
        started = now()
        amount = sum(step() for step in steps)
        connection.send((now() - started, amount))


def apart(function: Callable[[], T], threads: int = 1) -> T:
    """What a function returns that is called in a process of its own: this one stays without threads, so that it can be
    forked again. ``RuntimeError`` where the function raises, after its traceback."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()

    def run() -> None:
        torch.set_num_threads(threads)
        there.send(function())

    process = context.Process(target=run)
    process.start()
    there.close()
    try:
        return here.recv()
    except (EOFError, ConnectionError):
        raise RuntimeError("ended with the error above") from None
    finally:
        process.join()

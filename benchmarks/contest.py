"""Several sides do the same work in rounds; the result is the ratio of their speeds.

Each side has its own process, so that they do not share settings of the memory allocator. In every round all sides get
the same items, one side after the other, and a ratio compares their seconds within one round, so that other load on the
machine slows all sides alike. All sides must report the same amount of work. Padding does not count as work.
"""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any, Literal, TypeVar

import torch

Step = Callable[[Any], Callable[[], Any]]
"""Takes an item, such as rows of examples, and returns the timed function, which returns the amount of work. Work
before that is not timed: it makes what a data set on disk would hold."""
Build = Callable[[], Step]
Clock = Literal["CPU", "wall"]
_CLOCKS: dict[Clock, Callable[[], float]] = {"CPU": time.process_time, "wall": time.perf_counter}
T = TypeVar("T")


@dataclass(frozen=True)
class Contest:
    """Work that several sides do."""

    name: str
    ours: Mapping[str, Build]
    theirs: Mapping[str, Build]
    items: Iterator[Any] = field(default_factory=itertools.count)
    """Endless."""
    steps: int = 1
    """Items in a round."""
    part: Callable[[Any], Any] = lambda item: item
    """The part of an item that suffices to warm up a baseline."""
    unit: Literal["tokens", "sentences", "questions", "times"] = "tokens"
    """What is done a number of times is measured in seconds of the clock, all else on one thread in CPU-seconds."""
    threaded: bool = True
    """Whether it is also measured with more than one thread."""


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
    """Our speed as a multiple of the baseline's."""
    rates: tuple[float, float]
    """Units per second, ours and the baseline's; medians."""

    @property
    def median(self) -> float:
        return statistics.median(self.per_round)

    @property
    def name(self) -> str:
        threads = f"/{self.threads} threads" if self.threads > 1 else ""
        return f"{self.contest}{threads}/{self.ours}/{self.baseline}"


def measure(contest: Contest, rounds: int, threads: int = 1) -> list[Ratio]:
    """Compare all of ours with all baselines. ``AssertionError`` if the sides report different amounts of work."""
    clock: Clock = "CPU" if contest.unit != "times" and threads == 1 else "wall"
    ours = {label: _Side(build, clock, threads) for label, build in contest.ours.items()}
    theirs = {label: _Side(build, clock, threads) for label, build in contest.theirs.items()}
    sides = [*ours.values(), *theirs.values()]
    # Ours keeps its memory, so two whole items allocate all pages; a baseline allocates large blocks in every step.
    for side in ours.values():
        side.work([next(contest.items), next(contest.items)])
    for side in theirs.values():
        side.work([contest.part(next(contest.items))])
    for side in sides:
        side.seconds.clear()
    worked = []
    for _ in range(rounds):
        items = [next(contest.items) for _ in range(contest.steps)]
        amounts = [sum(side.work(items)) for side in sides]
        assert len({*amounts}) == 1, f"{contest.name}: the sides worked on different amounts: {amounts}"
        worked.append(amounts[0])
    for side in sides:
        side.end()
    found = []
    for our, their in itertools.product(ours, theirs):
        ratios = [b / a for a, b in zip(ours[our].seconds, theirs[their].seconds, strict=True)]
        rates = ours[our].rate(worked), theirs[their].rate(worked)
        found.append(Ratio(contest.name, threads, clock, contest.unit, our, their, ratios, rates))
    return found


class _Side:
    def __init__(self, build: Build, clock: Clock, threads: int) -> None:
        context = multiprocessing.get_context("fork")
        self._here, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(build, clock, threads, there), daemon=True)
        self._process.start()
        there.close()
        self.seconds: list[float] = []

    def work(self, items: list[Any]) -> list[Any]:
        """What the side's step returns for each item."""
        try:
            self._here.send(items)
            seconds, found = self._here.recv()
        except (EOFError, ConnectionError):
            raise RuntimeError("a side ended with the error above") from None
        self.seconds.append(seconds)
        return found

    def rate(self, worked: list[int]) -> float:
        return statistics.median(amount / spent for amount, spent in zip(worked, self.seconds, strict=True))

    def end(self) -> None:
        self._here.send(None)
        self._process.join()


def _serve(build: Build, clock: Clock, threads: int, connection: Connection) -> None:
    torch.set_num_threads(threads)
    prepare, now = build(), _CLOCKS[clock]
    while (items := connection.recv()) is not None:
        steps = [prepare(item) for item in items]
        started = now()
        found = [step() for step in steps]
        connection.send((now() - started, found))


def apart(function: Callable[[], T]) -> T:
    """Call a function in a process of its own, on one thread, and return its result: a process that has started threads
    cannot be forked safely. ``RuntimeError`` if the function raises, after its traceback."""
    side = _Side(lambda: lambda _: function, "CPU", 1)
    (result,) = side.work([None])
    side.end()
    return result

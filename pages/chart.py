"""Charts as SVG: lines and points over an axis, with text that can be selected and colours of the page's theme.

A series is told from others by its colour, its dashes and its marker. Numbers of a chart also stand in a table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

WIDTH, HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 12, 44
_MOST = 240
"""Points of a line at most; of more, the means of as many intervals are drawn."""
_COLOURS, _MARKERS = 8, 4


@dataclass(frozen=True)
class Series:
    """Points of one name."""

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    markers: bool = False
    spans: Sequence[tuple[float, float]] = ()
    """The lowest and highest value at each point."""
    like: int | None = None
    """Number of the series whose colour it shares; then it is drawn fainter, and is not in the legend."""


@dataclass(frozen=True)
class Chart:
    """Series over an axis, with horizontal lines for what they are compared with."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    levels: Mapping[str, float] = field(default_factory=dict)
    """Baselines by name."""
    x_from: float | None = None
    """Where the axis begins, if not at the least value."""

    @cached_property
    def drawn(self) -> Drawn:
        """Where everything lies."""
        return Drawn(self)

    @property
    def table(self) -> list[list[str]]:
        """First and last values of each line and all values of points, and the baselines, as rows with a head."""
        rows = [["", self.x_label, self.y_label]]
        for series in self.series:
            if series.like is None and series.points:
                shown = series.points if len(series.points) <= 12 else [series.points[0], series.points[-1]]
                rows += [[series.name, number(x), number(y)] for x, y in shown]
        return rows + [[name, "", number(value)] for name, value in self.levels.items()]

    @property
    def summary(self) -> str:
        """What a screen reader says of the picture."""
        ends = [
            f"{each.name} ends at {number(each.points[-1][1])}"
            for each in self.series
            if each.like is None and each.points
        ]
        levels = [f"{name} is {number(value)}" for name, value in self.levels.items()]
        return f"{self.title}: {self.y_label} over {self.x_label}. {'; '.join([*ends, *levels])}."


@dataclass(frozen=True)
class Shape:
    """A series as it is drawn."""

    name: str
    colour: int
    marker: int
    path: str
    """``d`` of the line, empty without one."""
    dots: list[tuple[float, float, str]]
    """Markers, with what they say."""
    spans: list[tuple[float, float, float]]
    """x, and the ends of a vertical line."""
    faint: bool
    at: tuple[float, float]
    """Its place in the legend."""


class Drawn:
    """The geometry of a chart."""

    def __init__(self, chart: Chart) -> None:
        xs = [x for each in chart.series for x, _ in each.points]
        ys = [y for each in chart.series for _, y in each.points]
        ys += [y for each in chart.series for span in each.spans for y in span] + [*chart.levels.values()]
        self.x_ticks, self._xs = _axis(xs if chart.x_from is None else [*xs, chart.x_from], 6, margin=0)
        self.y_ticks, self._ys = _axis(ys, 5, margin=0.06)
        named = [each for each in chart.series if each.like is None]
        names = [*(each.name for each in named), *chart.levels]
        self._places = _legend(names)
        self.height = HEIGHT + (18 * (1 + int(max((line for _, line in self._places), default=0))) if names else 0)
        self.shapes = [self._shape(number, each, chart.series) for number, each in enumerate(chart.series)]
        self.levels = [
            (name, self.y(value), number(value), place, self._spot(len(named) + place))
            for place, (name, value) in enumerate(chart.levels.items())
        ]
        self.left, self.right, self.top, self.bottom = _LEFT, WIDTH - _RIGHT, _TOP, HEIGHT - _BOTTOM
        self.width = WIDTH

    def x(self, value: float) -> float:
        """Place on the drawing, from the left."""
        low, high = self._xs
        return round(_LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        """Place on the drawing, from the top."""
        low, high = self._ys
        return round(HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 1)

    def _spot(self, number: int) -> tuple[float, float]:
        x, line = self._places[number]
        return x, HEIGHT + 8 + 18 * line

    def _shape(self, place: int, series: Series, every: Sequence[Series]) -> Shape:
        faint = series.like is not None
        colour = place if series.like is None else series.like
        counted = [number for number, each in enumerate(every) if each.like is None]
        points = [(self.x(x), self.y(y)) for x, y in thinned(series.points)]
        path = " ".join(f"{'L' if i else 'M'}{x} {y}" for i, (x, y) in enumerate(points)) if series.line else ""
        known = [(x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
        dots = [(self.x(x), self.y(y), f"{series.name}: {number(y)} at {number(x)}") for x, y in known]
        spans = [
            (self.x(x), self.y(low), self.y(high))
            for (x, _), (low, high) in zip(series.points, series.spans, strict=False)
        ]
        at = (0.0, 0.0) if faint else self._spot(counted.index(place))
        return Shape(
            series.name, counted.index(colour) % _COLOURS, counted.index(colour) % _MARKERS, path,
            dots if series.markers else [], spans, faint, at,
        )  # fmt: skip


def _axis(
    values: Sequence[float], wanted: int, *, margin: float
) -> tuple[list[tuple[float, str]], tuple[float, float]]:
    """Ticks with their labels, and the ends of an axis that shows these values."""
    from matplotlib.ticker import MaxNLocator

    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(known), max(known)
    if low == high:
        low, high = low - (abs(low) or 1) * 0.1, high + (abs(high) or 1) * 0.1
    room = (high - low) * margin
    low, high = low - room, high + room
    ticks = [float(tick) for tick in MaxNLocator(wanted).tick_values(low, high) if low <= tick <= high]
    return [(tick, number(tick)) for tick in ticks], (low, high)


def _legend(names: Sequence[str]) -> list[tuple[float, int]]:
    """Where each name stands below a chart: x and the number of its line."""
    places, x, line = [], 0.0, 0
    for name in names:
        size = 34 + 6.6 * len(name)
        if x and x + size > WIDTH - 8:
            x, line = 0.0, line + 1
        places.append((round(8 + x, 1), line))
        x += size
    return places


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points, or means of intervals where there are many; those that are not finite are left out."""
    known = [point for point in points if all(map(math.isfinite, point))]
    if len(known) <= _MOST:
        return known
    parts = np.array_split(np.array(known), _MOST)
    return [known[0], *((float(x), float(y)) for x, y in (part.mean(0) for part in parts[1:-1])), known[-1]]


def number(value: float) -> str:
    """A number in few characters: 4 digits that count."""
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 1e6 or size < 1e-3:
        for unit, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
            if size >= scale:
                return f"{value / scale:.4g} {unit}"
        return f"{value:.2e}"
    return f"{value:,.0f}" if size >= 1000 else f"{value:.4g}"

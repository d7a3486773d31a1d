"""Plots: panels side by side, curves of a run, confusion matrices and bars, with names shown as plain text."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from bertillery.engine.objective import Shown
from bertillery.run.tracking import read_series
from bertillery.system.files import writing
from bertillery.system.printable import printable

logger = logging.getLogger(__name__)


def figure(panels: int, title: str, *, panel: tuple[float, float] = (4.2, 3.4), columns: int = 4) -> list[Any]:
    """Axes of a new figure, one for each panel; ``panel`` is width and height in inches."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    columns = min(panels, columns)
    lines = -(-panels // columns)
    size = (panel[0] * columns, panel[1] * lines)
    drawn, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    drawn.suptitle(plain(title), fontsize=10)
    for axis in axes.flat[panels:]:
        axis.axis("off")
    return list(axes.flat[:panels])


def save(axes: list[Any], picture: Path) -> None:
    """Write the figure of these axes and close it."""
    from matplotlib import pyplot, rcParams
    from matplotlib.text import Text

    drawn = axes[0].figure
    for text in drawn.findobj(Text):  # ticks were made before names added fallback fonts
        text.set_fontfamily(rcParams["font.family"])
    with writing(picture):
        drawn.savefig(picture, dpi=110)
    pyplot.close(drawn)


@dataclass(frozen=True)
class Panel:
    """A metric of a run, to be plotted over its steps."""

    name: str
    """As it is logged, without ``train/`` or ``held_out/``."""
    title: str
    baselines: Mapping[str, float] = field(default_factory=dict)
    """By label; each is a horizontal line."""
    direction: str = ""
    """``lower`` or ``higher``, whichever is better, where it is to be said."""


def term_panels(shown: Mapping[str, Shown], baselines: Mapping[str, float], label: str = "baseline") -> list[Panel]:
    """A panel for each term of an objective, with its baseline under this label."""
    lines = {name: {label: baselines[name]} if name in baselines else {} for name in shown}
    return [Panel(name, term.title, lines[name], term.direction) for name, term in shown.items()]


def plot_curves(metrics_file: Path, panels: Sequence[Panel], picture: Path, title: str) -> None:
    """Plot each metric that was logged over steps, in training and held out, with its baselines."""
    series = read_series(metrics_file)
    panels = [panel for panel in panels if {f"train/{panel.name}", f"held_out/{panel.name}"} & series.keys()]
    axes = figure(len(panels), title)
    for axis, panel in zip(axes, panels, strict=True):
        for part, style, label in (("train", "-", "training"), ("held_out", "o-", "held out")):
            if points := series.get(f"{part}/{panel.name}"):
                axis.plot(*zip(*points, strict=True), style, label=label, markersize=4)
        for (name, value), style in zip(panel.baselines.items(), cycle(("--", ":")), strict=False):
            axis.axhline(value, color="grey", linestyle=style, linewidth=1, label=name.replace("_", " "))
        axis.set_title(plain(panel.title), fontsize=9)
        axis.set(xlabel="step", ylabel=f"{panel.direction} is better" if panel.direction else "")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    save(axes, picture)


_READABLE = 40
"""The most labels of a confusion matrix that shows a number in each cell."""


def plot_confusion(
    predictions: np.ndarray, labels: np.ndarray, names: Sequence[str], picture: Path, title: str
) -> None:
    """Share of the examples of each class id (a row) that were predicted as each class id, with counts if readable."""
    size = len(names)
    counts = np.zeros((size, size), dtype=np.int64)
    np.add.at(counts, (labels, predictions), 1)
    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    readable = size <= _READABLE
    side = 3.0 + (0.5 if readable else 0.14) * size
    (axis,) = axes = figure(1, title, panel=(side + 0.8, side))
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [*map(plain, names)]
    axis.set_xticks(range(size), names, rotation=45 if readable else 90, ha="right", fontsize=8 if readable else 5)
    axis.set_yticks(range(size), names, fontsize=8 if readable else 5)
    axis.set(xlabel="predicted", ylabel="label")
    for row, column in np.ndindex(size, size) if readable else ():
        color = "white" if shares[row, column] > 0.6 else "black"
        axis.text(column, row, f"{counts[row, column]:,}", ha="center", va="center", color=color, fontsize=8)
    save(axes, picture)


def plot_bars(groups: Sequence[str], bars: Mapping[str, Sequence[float]], picture: Path, title: str) -> None:
    """A bar from 0 to 1 for each name of ``bars``, in each group."""
    (axis,) = axes = figure(1, title, panel=(2.0 + 0.9 * len(groups), 3.4))
    width = 0.8 / len(bars)
    for place, (name, heights) in enumerate(bars.items()):
        at = np.arange(len(groups)) + (place - (len(bars) - 1) / 2) * width
        axis.bar(at, heights, width, label=name.replace("_", " "))
    axis.set_xticks(range(len(groups)), [*map(plain, groups)], rotation=30, ha="right", fontsize=8)
    axis.set(ylim=(0, 1))
    axis.grid(alpha=0.3, axis="y")
    axis.legend(fontsize=8)
    save(axes, picture)


def plot_paths(paths: Mapping[str, Sequence[tuple[str, float]]], picture: Path, title: str) -> None:
    """Under each name its paths in words, each with a bar from 0 to 1 for its share."""
    lines = sum(max(1, len(found)) + 1 for found in paths.values())
    (axis,) = axes = figure(1, title, panel=(10.0, 1.0 + 0.28 * lines))
    at = 0
    for name, found in paths.items():
        axis.text(0.0, at, plain(name), fontsize=9, fontweight="bold", va="center")
        for path, share in found or [("no path", 0.0)]:
            at += 1
            axis.barh(at, share, color="lightsteelblue")
            axis.text(0.01, at, f"{plain(path)}{f'  {share:.0%}' if found else ''}", fontsize=8, va="center")
        at += 1
    axis.set(xlim=(0, 1), ylim=(at - 0.5, -0.7), xlabel="share of the attention")
    axis.set_yticks([])
    save(axes, picture)


def plain(name: str) -> str:
    """A name as one line of plain text for a plot: ``$`` does not begin a formula.

    Characters that the plot's fonts lack come from other installed fonts. Those that no font has are written as
    ``U+XXXX``, with a warning.
    """
    name = printable(" ".join(name.split()))
    lacking = set() if name.isascii() else _without_glyph(name)
    if lacking:
        _warn_of_fonts()
        name = " ".join("".join(f" U+{ord(each):04X} " if each in lacking else each for each in name).split())
    return name.replace("$", r"\$")


def _without_glyph(name: str) -> set[str]:
    """Characters that no installed font has; fonts that have some are added to the plot's fallback fonts."""
    from matplotlib import font_manager, rcParams

    def found_in(file: str, characters: set[str]) -> set[str]:
        try:
            font = font_manager.get_font(file)
        except (OSError, RuntimeError):  # a listed font that is missing or damaged
            return set()
        return {each for each in characters if font.get_char_index(ord(each))}

    lacking = {*name}
    for family in rcParams["font.family"]:
        lacking -= found_in(font_manager.findfont(font_manager.FontProperties([family])), lacking)
    upright = [font for font in font_manager.fontManager.ttflist if (font.weight, font.style) == (400, "normal")]
    for font in sorted(upright, key=lambda font: font.name):
        if lacking and font.name not in _EMPTY and (found := found_in(font.fname, lacking)):
            rcParams["font.family"] = [*rcParams["font.family"], font.name]
            lacking -= found
    return lacking


_EMPTY = ("Last Resort High-Efficiency", ".LastResort", "Adobe Blank")
"""Fonts that show a placeholder for every character."""


@cache
def _warn_of_fonts() -> None:
    logger.warning(
        "no installed font has all characters of the names in the plots, so they are written as U+XXXX; "
        "install one that has them (for Chinese, Japanese and Korean, say, Noto Sans CJK)"
    )

"""Pictures: names are shown as they are, and numbers on axes as numbers."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager, rcParams
from matplotlib.backends.backend_agg import RendererAgg

from bertillery.report import plot
from bertillery.report.plot import plot_bars, plot_confusion
from deploy.compare import draw
from experiments.rates import RangeTest, write_range
from experiments.search import Trial, plot_trials
from experiments.seeds import write_table
from experiments.space import Range, Space
from tests.deploy.test_compare import comparison, facts
from tests.experiments.test_seeds import summary_of

NASTY = ["$_^$", "a$b", r"\frac $x$ \$", "<b> & |"]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Texts that are drawn, with whether they are set as mathematics; settings of matplotlib are put back."""
    found: dict[str, Any] = {}
    drawn = RendererAgg.draw_text
    mathematics = RendererAgg.draw_mathtext

    def draw_text(self: Any, gc: Any, x: float, y: float, s: str, *more: Any, **keys: Any) -> None:
        found[s] = found.get(s) or False
        drawn(self, gc, x, y, s, *more, **keys)

    def draw_mathtext(self: Any, gc: Any, x: float, y: float, s: str, *more: Any) -> None:
        found[s] = True
        mathematics(self, gc, x, y, s, *more)

    monkeypatch.setattr(RendererAgg, "draw_text", draw_text)
    monkeypatch.setattr(RendererAgg, "draw_mathtext", draw_mathtext)
    monkeypatch.setitem(rcParams, "font.family", ["sans-serif"])
    monkeypatch.setitem(rcParams, "text.parse_math", True)
    plot._warn_of_fonts.cache_clear() if hasattr(plot, "_warn_of_fonts") else None
    return found


def test_powers_of_ten_are_set_as_such(shown: dict[str, Any], tmp_path: Path) -> None:
    """On every logarithmic axis, whatever was drawn before."""
    rates = np.geomspace(1e-7, 1e-1, 60)
    plot_confusion(np.arange(4), np.arange(4), NASTY, tmp_path / "before.png", "a picture with names")
    write_range(RangeTest(rates, np.cos(np.log(rates)), "all steps were done"), tmp_path, "rates")
    trials = [Trial(i, {"optim.learning_rate": 10.0**-i}, "accuracy", 0.5, "") for i in range(2, 5)]
    space = Space({"optim.learning_rate": Range("log_uniform", 1e-5, 1e-1)})
    plot_trials(trials, space, tmp_path / "trials.png", "trials")
    ticks = {text: math for text, math in shown.items() if "mathdefault" in text}
    assert len(ticks) > 4
    assert all(ticks.values())


def test_names_are_text(shown: dict[str, Any], tmp_path: Path) -> None:
    """Labels, groups, tasks, models, values of settings and titles: as they are, and nothing in them is mathematics."""
    key = ("rte", "validation")
    compared = comparison([facts(name, {key: {"accuracy": 0.8}}) for name in NASTY], [10, 4, 5, 6])
    trials = [Trial(i, {"recipe": name}, "accuracy", 0.5, "") for i, name in enumerate(NASTY)]
    pictures: dict[str, Any] = {
        "confusion": lambda: plot_confusion(np.arange(4), np.arange(4), NASTY, tmp_path / "a.png", NASTY[0]),
        "bars": lambda: plot_bars(NASTY, {"f1": [0.1] * 4}, tmp_path / "a.png", NASTY[0]),
        "seeds": lambda: write_table({name: summary_of(0.5) for name in NASTY}, tmp_path / "t", NASTY[0]),
        "trials": lambda: plot_trials(trials, Space({"recipe": NASTY}), tmp_path / "a.png", NASTY[0]),
        "compare": lambda: plot.save(draw(compared), tmp_path / "a.png"),
    }
    for what, picture in pictures.items():
        shown.clear()
        picture()
        there = {f"{name} (teacher)" if what == "compare" and name == NASTY[0] else name for name in NASTY}
        assert there <= shown.keys(), what
        assert not any(shown[name] for name in there), what


def write_font(file: Path, family: str, characters: str) -> None:
    """A font with a square for each character."""
    pen = TTGlyphPen(None)
    for move, point in zip((pen.moveTo, *[pen.lineTo] * 3), ((0, 0), (0, 500), (500, 500), (500, 0)), strict=True):
        move(point)
    pen.closePath()
    names = [".notdef", *(f"u{ord(each):04X}" for each in characters)]
    builder = FontBuilder(1000)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap({ord(each): f"u{ord(each):04X}" for each in characters})
    builder.setupGlyf(dict.fromkeys(names, pen.glyph()))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (600, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": family, "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(file)


def test_characters_that_the_font_lacks_come_from_another_or_are_written_as_numbers(
    shown: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    recwarn: pytest.WarningsRecorder,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The two ideographs of "bad" are in an installed font, that of "good" in none."""
    names, absent = ["中性", "差评 $1$", "\ufdd1\ufdd2", "ü"], "U+FDD1 U+FDD2"
    write_font(tmp_path / "some.ttf", "Some Ideographs", "中性差评")
    monkeypatch.setattr(font_manager.fontManager, "ttflist", [*font_manager.fontManager.ttflist])
    font_manager.fontManager.addfont(tmp_path / "some.ttf")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            plot_confusion(np.arange(4), np.arange(4), names, tmp_path / "a.png", "labels")
    assert {"中性", "差评 $1$", absent, "ü"} <= shown.keys()
    assert not [said for each in recwarn if "missing from font" in (said := str(each.message))]
    assert caplog.text.count("no installed font") == 1

"""Charts: where points lie, how many there are, and numbers in few characters."""

from __future__ import annotations

import math
from xml.etree import ElementTree

import pytest

from pages.chart import WIDTH, Chart, Series, number, thinned
from pages.render import chart_svg


def test_points_lie_by_their_values() -> None:
    chart = Chart("a", "step", "loss", [Series("one", [(0, 1.0), (5, 3.0), (10, 2.0)], markers=True)], {"floor": 1.5})
    drawn = chart.drawn
    xs, ys = zip(*((x, y) for x, y, _ in drawn.shapes[0].dots), strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert ys[1] < ys[2] < ys[0]  # the highest value is nearest to the top
    assert ys[2] < drawn.levels[0][1] < ys[0]
    assert all(drawn.left <= x <= drawn.right for x in xs)
    assert all(drawn.top <= y <= drawn.bottom for y in ys)


def test_a_picture_is_well_formed_and_its_text_is_text() -> None:
    hostile = "<script>\x1b& $x$ \u202e"
    chart = Chart(hostile, hostile, hostile, [Series(hostile, [(0, 1.0), (1, math.nan), (2, 2.0)])], {hostile: 1.0})
    root = ElementTree.fromstring(chart_svg(chart))
    names = [element.tag.split("}")[1] for element in root.iter()]
    assert "script" not in names
    texts = [element.text for element in root.iter() if element.tag.endswith("}text")]
    assert "<script>␛& $x$ �" in texts
    assert "nan" not in chart_svg(chart)


def test_many_points_become_means_of_intervals() -> None:
    points = [(float(x), math.sin(x / 500)) for x in range(10_000)]
    few = thinned(points)
    assert len(few) == 240
    assert (few[0], few[-1]) == (points[0], points[-1])
    assert max(abs(y - math.sin(x / 500)) for x, y in few) < 0.01


@pytest.mark.parametrize("values", [[], [(0.0, 5.0)], [(0.0, math.inf)], [(1.0, 0.0), (1.0, 0.0)]])
def test_odd_series_are_drawn(values: list[tuple[float, float]]) -> None:
    found = chart_svg(Chart("a", "x", "y", [Series("one", values, markers=True)]))
    paths = [element.get("d", "") for element in ElementTree.fromstring(found).iter() if element.tag.endswith("}path")]
    assert not any("nan" in path or "inf" in path for path in paths)


def test_names_stay_within_the_picture() -> None:
    chart = Chart("a", "x", "y", [Series(f"a rather long name of run {i}", [(0.0, i)]) for i in range(8)])
    places = [shape.at for shape in chart.drawn.shapes]
    assert len({y for _, y in places}) > 3
    assert all(0 <= x < WIDTH and y < chart.drawn.height for x, y in places)


def test_numbers_are_short() -> None:
    found = [number(value) for value in (0, 0.123456, 1234.5, 2.5e6, 3e13, 1e-5, -2)]
    assert found == ["0", "0.1235", "1,234", "2.5 M", "30 T", "1.00e-05", "-2"]

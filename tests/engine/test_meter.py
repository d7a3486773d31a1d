"""The progress bar of a training."""

from __future__ import annotations

import io
import re
import sys
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bertillery.engine.meter import Progress, fitting


class Terminal(io.StringIO):
    """Standard error as a terminal, whose width the environment tells."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [80, 60, 200])
@pytest.mark.parametrize("total", [50, 1_000_000])
def test_the_bar_fits_the_terminal_and_keeps_what_matters(
    columns: int, total: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss and the time left are there whole at any width, other terms where there is room."""
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    values = {"train/loss": 12.345, "train/mlm": 9.876, "train/nsp": 0.693, "tokens_per_second": 123456.0}
    with Progress(total, 0, is_main=True) as progress:
        progress.advance(cast(Any, SimpleNamespace(step=1)))
        progress.show(values)
        progress._bar.refresh()
    frames = [frame for frame in re.split(r"[\r\n]", terminal.getvalue()) if frame.strip()]
    assert max(map(len, frames)) <= columns
    last = frames[-1]
    assert re.search(rf"\b1/{total} \S+ left, loss 12\.345", last)
    assert ("123,456 tokens/s" in last) == (columns >= 80)
    assert ("mlm 9.876, nsp 0.693" in last) == (columns == 200)
    assert "\x1b" not in terminal.getvalue()


def test_parts_are_left_out_from_the_end() -> None:
    assert fitting(["loss 1", "fast", "mlm 2"], 12) == "loss 1, fast"
    assert fitting(["loss 1", "fast"], 0) == "loss 1"

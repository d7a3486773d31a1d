"""Results as lines on a screen and as a table for documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.turns import Ratio
from bertillery.report.table import markdown_table

_HEAD = ("workload", "threads", "ours", "baseline", "ratio", "min", "max", "ours", "baseline")
_WIDTHS = (22, 8, 21, 18, 6, 6, 6, 11, 11)
_WORDS = 4
"""Cells that are no numbers."""


def cells(ratio: Ratio) -> list[str]:
    """One ratio; the last two cells are tokens a second, or the seconds of one time."""
    numbers = (ratio.median, min(ratio.per_round), max(ratio.per_round))
    rates = [f"{rate:,.0f}/s" if ratio.unit == "tokens" else f"{1 / rate:.2f} s" for rate in ratio.rates]
    return [
        ratio.contest,
        f"{ratio.threads} {ratio.clock}",
        ratio.ours,
        ratio.baseline,
        *(f"{number:.2f}" for number in numbers),
        *rates,
    ]


def line(row: Sequence[str] = _HEAD) -> str:
    """A row in columns; without one, the head."""
    columns = enumerate(zip(row, _WIDTHS, strict=True))
    aligned = [cell.ljust(width) if at < _WORDS else cell.rjust(width) for at, (cell, width) in columns]
    return " ".join(aligned)


def machine(about: dict[str, Any]) -> str:
    """Machine, versions and commit in one line."""
    changed = " with changes" if about["changed"] else ""
    return (
        f"{about['cpu']}, {about['cores']} cores; torch {about['torch']}, transformers {about['transformers']}, "
        f"commit {about['commit']}{changed}"
    )


def document(about: dict[str, Any], facts: Sequence[str], ratios: Sequence[Ratio]) -> str:
    """Everything that was measured, in Markdown."""
    rows = [[*_HEAD], *(cells(ratio) for ratio in ratios)]
    lines = [machine(about), *facts]
    return "\n".join([*(f"{said}  " for said in lines), "", markdown_table(rows), ""])

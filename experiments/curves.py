"""``python -m experiments.curves runs=[<folder>,<folder>]``: one metric of several runs over their steps, in a picture.

For what no picture of a single run shows, such as training with and without warm-up.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from bertillery.config.section import InputError, Section
from bertillery.report.plot import figure, plain, save
from bertillery.report.table import markdown_table
from bertillery.run.command import tool
from bertillery.run.tracking import read_series

Points = list[tuple[int, float]]
"""Steps and values."""


class CurvesSection(Section):
    """Keys of the comparison."""

    runs: list[Path] = Field(min_length=1)
    """Folders of runs, finished or not."""
    metric: str = "train/loss"
    """A metric as the runs record it in `metrics.jsonl`."""
    picture: Path = Path("curves.png")
    """Where the picture goes."""
    most: float | None = None
    """The largest value shown; by default all are."""


def main(arguments: Sequence[str]) -> int:
    """Print the last values and draw the curves; returns the exit status."""
    return tool(arguments, help=__doc__, schema=CurvesSection, action=_run)


def _run(section: CurvesSection) -> int:
    curves = {str(run): curve(run, section.metric) for run in section.runs}
    rows = [[name, f"{points[-1][0]:,}", f"{points[-1][1]:.3f}"] for name, points in curves.items()]
    print(markdown_table([["run", "step", section.metric], *rows]))
    draw(_short(curves), section.metric, section.picture, most=section.most)
    print(f"\npicture  {section.picture}")
    return 0


def curve(run: Path, metric: str) -> Points:
    """The metric of a run; ``InputError`` where it was not recorded."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        raise InputError(f"runs: {run}: no metrics.jsonl there; give folders of runs, such as runs/finetune/<name>")
    series = read_series(file)
    if not series.get(metric):
        raise InputError(f"metric: given {metric!r}; {file} has {', '.join(sorted(series.keys() - {'step', 'time'}))}")
    return series[metric]


def _short(curves: Mapping[str, Points]) -> dict[str, Points]:
    """Names without the folders that all runs share, at the beginning and at the end of their paths."""
    parts = [list(Path(name).parts) for name in curves]
    for end in (0, -1):
        while min(map(len, parts)) > 1 and len({each[end] for each in parts}) == 1:
            for each in parts:
                del each[end]
    return {"/".join(each): points for each, points in zip(parts, curves.values(), strict=True)}


def draw(curves: Mapping[str, Points], metric: str, picture: Path, *, most: float | None = None) -> None:
    """All curves on one pair of axes."""
    (axis,) = axes = figure(1, metric, panel=(6.4, 4.0))
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), label=plain(name))
    axis.set(xlabel="step")
    axis.set_ylim(top=most)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(axes, picture)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

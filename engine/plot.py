"""Pictures of runs, panels side by side, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def figure(panels: int, title: str, *, panel: tuple[float, float] = (4.2, 3.4), columns: int = 4) -> list[Any]:
    """Axes of a new figure, one for each panel; ``panel`` is width and height in inches."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["text.parse_math"] = False  # names of labels and runs are text, whatever signs are in them
    from matplotlib import pyplot

    columns = min(panels, columns)
    lines = -(-panels // columns)
    size = (panel[0] * columns, panel[1] * lines)
    drawn, axes = pyplot.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    drawn.suptitle(title, fontsize=10)
    for axis in axes.flat[panels:]:
        axis.axis("off")
    return list(axes.flat[:panels])


def save(axes: list[Any], picture: Path) -> None:
    """Write the figure of these axes and let go of it."""
    from matplotlib import pyplot

    drawn = axes[0].figure
    drawn.savefig(picture, dpi=110)
    pyplot.close(drawn)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Rows, the first being the head, as an aligned Markdown table."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])

"""Pictures of runs: panels side by side, and names that are text in them."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from typing import Any

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
    """Write the figure of these axes and let go of it."""
    from matplotlib import pyplot, rcParams
    from matplotlib.text import Text

    drawn = axes[0].figure
    for text in drawn.findobj(Text):  # ticks are older than the names on them, and know no fonts that those brought
        text.set_fontfamily(rcParams["font.family"])
    with writing(picture):
        drawn.savefig(picture, dpi=110)
    pyplot.close(drawn)


def plain(name: str) -> str:
    """A name as text of a picture that shows it as it is, on one line: no sign in it begins a formula.

    Characters that the picture's fonts lack are taken from other installed ones; what none of them has is written as
    ``U+XXXX``, and a warning says so.
    """
    name = printable(" ".join(name.split()))
    lacking = set() if name.isascii() else _without_glyph(name)
    if lacking:
        _warn_of_fonts()
        name = " ".join("".join(f" U+{ord(each):04X} " if each in lacking else each for each in name).split())
    return name.replace("$", r"\$")


def _without_glyph(name: str) -> set[str]:
    """Characters that no font has; families that have others are added to those that pictures fall back on."""
    from matplotlib import font_manager, rcParams

    def found_in(file: str, characters: set[str]) -> set[str]:
        try:
            font = font_manager.get_font(file)
        except (OSError, RuntimeError):  # a font that is listed, but gone or damaged
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
"""Fonts whose glyphs show that there is none."""


@cache
def _warn_of_fonts() -> None:
    logger.warning(
        "no installed font has all characters of the names in the pictures, which write those as U+XXXX; "
        "install one that has them (for Chinese, Japanese and Korean, say, Noto Sans CJK)"
    )

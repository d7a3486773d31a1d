"""``python -m pages.screenshots pages.report=runs/report/report.html output=docs``: pictures of pages in a browser.

For each page two PNG files, ``<name>-light.png`` and ``<name>-dark.png``, with the page at the width of a desktop and
of a phone side by side. A page is a file, with ``#section`` to begin there, or the address of a local dashboard. It
needs Chromium and the package playwright: ``apt-get install chromium`` and ``pip install -e '.[browser]'``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import importlib
import importlib.util
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pydantic import Field

from bertillery.config.section import InputError, Section
from bertillery.config.types import PathName
from bertillery.run.command import tool

_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
WIDTHS = {"wide": 1120, "narrow": 390}
"""In pixels of CSS: a desktop and a phone."""
_COLOURS = 48
"""Of a PNG: pages have few, and the files are a third as large."""
_DRAWN = """() => {
    const before = window.drawn;
    window.drawn = document.body.innerHTML.length;
    return document.fonts.status === "loaded" && window.drawn === before;
}"""
"""Whether a page is as it was a second ago: dashboards fetch what they draw."""
Scheme = Literal["light", "dark"]


class ScreenshotsSection(Section):
    """Keys of screenshots."""

    pages: dict[PathName, str] = Field(min_length=1)
    """Files or local addresses, by the name of their pictures."""
    height: int = Field(default=1000, ge=100, le=10_000)
    """Pixels that are shown of a page."""
    output: Path = Path("docs")
    """Folder of the pictures."""


def main(arguments: Sequence[str]) -> int:
    """Take them; returns the exit status."""
    return tool(arguments, help=__doc__, schema=ScreenshotsSection, action=_run)


def _run(section: ScreenshotsSection) -> int:
    addresses = {name: address(page) for name, page in section.pages.items()}
    section.output.mkdir(parents=True, exist_ok=True)
    with browser() as found:
        for name, page in addresses.items():
            for file in photograph(found, page, section.output / name, height=section.height):
                print(f"picture     {file}   ({file.stat().st_size:,} bytes)")
    return 0


def photograph(context: Any, url: str, stem: Path, *, height: int) -> Iterator[Path]:
    """Take a page's pictures in both colour schemes; yields each file, whose name begins with ``stem``."""
    for scheme in ("light", "dark"):
        file = stem.with_name(f"{stem.name}-{scheme}.png")
        _side_by_side([_picture(context, url, scheme, width, height) for width in WIDTHS.values()], file)
        yield file


def address(page: str) -> str:
    """The URL of a file or of a local address; ``InputError`` for a file that is not there and for other hosts."""
    if page.startswith(("http://localhost", "http://127.0.0.1")):
        return page
    path, mark, section = page.partition("#")
    if "://" in page or not Path(path).is_file():
        raise InputError(
            f"pages: {page}: no such file; give an HTML file, or the address of a dashboard on this machine"
        )
    return f"{Path(path).resolve().as_uri()}{mark}{section}"


def missing() -> str | None:
    """What a browser lacks here, or None."""
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed: pip install -e '.[browser]'"
    return None if _program() else f"there is no browser ({', '.join(_BROWSERS)}): apt-get install chromium"


def _program() -> str | None:
    return next((found for name in _BROWSERS if (found := shutil.which(name))), None)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless browser with an empty profile; ``InputError`` where there is none."""
    if why := missing():
        raise InputError(f"screenshots: {why}")
    start = importlib.import_module("playwright.sync_api").sync_playwright
    with TemporaryDirectory() as profile, start() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=_program(), headless=True, args=list(_FLAGS)
        )
        try:
            yield context
        finally:
            context.close()


@contextmanager
def opened(context: Any, url: str, *, scheme: Scheme = "light", width: int = 1120, height: int = 1000) -> Iterator[Any]:
    """The page, loaded in a window of this size."""
    page = context.new_page()
    try:
        page.set_viewport_size({"width": width, "height": height})
        page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
        page.goto(url, wait_until="load")
        yield page
    finally:
        page.close()


def _picture(context: Any, url: str, scheme: str, width: int, height: int) -> bytes:
    options: Mapping[str, Any] = {"scheme": scheme, "width": width, "height": height}
    with opened(context, url, **options) as page:
        page.wait_for_function(_DRAWN, polling=1000)
        return page.screenshot()


def _side_by_side(pictures: Sequence[bytes], file: Path) -> None:
    from PIL import Image

    images = [Image.open(BytesIO(each)).convert("RGB") for each in pictures]
    gap = 16
    size = sum(image.width for image in images) + gap * (len(images) - 1), max(image.height for image in images)
    whole, at = Image.new("RGB", size, (128, 128, 128)), 0
    for image in images:
        whole.paste(image, (at, 0))
        at += image.width + gap
    whole.quantize(_COLOURS, dither=Image.Dither.NONE).save(file, optimize=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

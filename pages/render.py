"""A page as one HTML file that needs no network, and as Markdown with its charts beside it.

Text from elsewhere (labels, samples, tokens, names) is shown as text: every value that enters a template is made
printable, then escaped; it is isolated from the direction of the text around it, and the page allows no script but its
own and loads nothing.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from bertillery.report.table import escaped, fenced, markdown_table
from bertillery.system.files import write_text
from bertillery.system.printable import printable
from pages.blocks import Block, Facts, Heads, Lines, Marks, Page, Paragraph, Table
from pages.chart import Chart

_TEMPLATES = Path(__file__).parent / "templates"
_MARKERS = [
    "m-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0",
    "m-4 -4h8v8h-8z",
    "m0 -5l5 9h-10z",
    "m0 -5.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
]
"""Circle, square, triangle, diamond, as paths from the middle."""


def _shown(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


@cache
def _environment() -> Environment:
    found = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, finalize=_shown,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    found.filters["shown"] = _shown
    found.filters["kind"] = lambda block: type(block).__name__.lower()  # whose template shows it
    found.globals["markers"] = _MARKERS
    return found


def _file(name: str) -> str:
    return (_TEMPLATES / name).read_text(encoding="utf-8")


def page_html(page: Page) -> str:
    """The page as HTML."""
    script = _file("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _environment().get_template("page.html").render(
        page=page,
        style=Markup(_file("page.css") + _file("chart.css")),
        script=Markup(script),
        script_hash=digest,
        alone=None,
    )  # fmt: skip


def chart_svg(chart: Chart) -> str:
    """The chart as a file of its own."""
    return _environment().get_template("chart.svg").render(block=chart, alone=Markup(_file("chart.css")))


def write_page(page: Page, html: Path, markdown: Path | None = None) -> None:
    """Write the page; beside the Markdown, if it is asked for, a folder of its name with the charts."""
    html.parent.mkdir(parents=True, exist_ok=True)
    write_text(html, page_html(page))
    if markdown is None:
        return
    folder = markdown.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [f"# {escaped(page.title)}", escaped(page.about)]
    for section in page.shown:
        parts.append(f"## {escaped(section.title)}")
        for number, block in enumerate(section.blocks, 1):
            if isinstance(block, Chart):
                file = folder / f"{section.anchor}-{number}.svg"
                write_text(file, chart_svg(block))
                parts.append(f"![{escaped(block.summary)}]({folder.name}/{file.name})")
            else:
                parts.append(_markdown(block))
    write_text(markdown, "\n\n".join(filter(None, parts)) + "\n")


def _markdown(block: Block) -> str:
    match block:
        case Paragraph():
            return escaped(block.text)
        case Facts():
            return "\n".join(f"- {escaped(name)}: {escaped(value)}" for name, value in block.pairs)
        case Table():
            return "\n\n".join(filter(None, (escaped(block.caption), markdown_table(block.rows), escaped(block.note))))
        case Lines():
            return f"{escaped(block.caption)}\n\n{fenced(chr(10).join(map(printable, block.lines)), '')}"
        case Marks():
            rows = [["token", "", ""], *([mark.token, mark.below, mark.said] for mark in block.marks)]
            return f"{escaped(block.caption)}\n\n{markdown_table(rows)}"
        case Heads():
            rows = [["layer", "head", "mostly"]]
            rows += [[str(head.layer), str(head.head), head.said] for head in block.heads]
            return f"{escaped(block.caption)}\n\n{markdown_table(rows)}"
        case Chart():
            return escaped(block.summary)

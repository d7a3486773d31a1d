"""The code blocks of the documentation. ``python -m tests.blocks`` writes the outputs of the pages that are run."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
RUN = [ROOT / "docs/learn/objectives.md"]
"""Pages whose Python is run, one block after the other; an output stands behind the block that prints it."""
_PYTHON = re.compile(r"^```python\n(?P<code>.*?)^```\n(?:\n```text\n(?P<output>.*?)^```\n)?", re.M | re.S)


def outputs(page: Path) -> list[tuple[str, str]]:
    """What each Python block of a page prints, and what the page says it does."""
    scope: dict[str, Any] = {}
    found = []
    for block in _PYTHON.finditer(page.read_text(encoding="utf-8")):
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(block["code"], f"{page.name}", "exec"), scope)
        found.append((printed.getvalue(), block["output"] or ""))
    return found


def rewrite(page: Path) -> None:
    """Replace the outputs in a page by what its blocks print."""
    printed = iter(outputs(page))

    def fresh(block: re.Match[str]) -> str:
        said, _ = next(printed)
        return f"```python\n{block['code']}```\n" + (f"\n```text\n{said}```\n" if said else "")

    page.write_text(_PYTHON.sub(fresh, page.read_text(encoding="utf-8")), encoding="utf-8")


def commands(page: Path) -> list[str]:
    """The lines of the page's shell blocks, continued lines joined, without comments and here-documents."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    text = "\n".join(re.sub(r"^([^\n]*<<'(\w+)'[^\n]*)\n.*?^\2$", r"\1", each, flags=re.M | re.S) for each in blocks)
    lines = (re.sub(r"(^|\s+)#.*", "", line).strip() for line in text.replace("\\\n", " ").splitlines())
    return [part.strip() for line in lines if line for part in re.split(r" (?:&&|\|\|) ", line)]


if __name__ == "__main__":
    for each in RUN:
        rewrite(each)

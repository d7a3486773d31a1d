"""The code blocks of the documentation. ``python -m tests.blocks`` writes the outputs of the pages that are run."""

from __future__ import annotations

import contextlib
import io
import itertools
import re
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
RUN = [ROOT / "docs/learn/objectives.md"]
"""Pages whose Python is run, one block after the other; an output stands behind the block that prints it."""
_SHELL = re.compile(r"^```sh\n(.*?)^```", re.M | re.S)
_FENCED = re.compile(r"^```.*?^```", re.M | re.S)
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


_PLACEHOLDER = re.compile(r"(?<!<)<[^<>\n]+>|(?<=[= \"])\.\.\.(?=[\"\s,\]]|$)", re.M)
_SAY = """
exec 3>said
command_not_found_handle() { printf '%s\\0' "$@" $'\\n' >&3; }
"""
"""Makes bash say the words of a command that it does not find, instead of running it."""


def commands(page: Path, folder: Path) -> list[list[str]]:
    """The words of the page's commands, read by bash in an empty ``folder`` that has no programs: variables, loops and
    quotes are bash's, and nothing runs. Commands within a sentence count if they have settings.

    What stands in ``<...>``, and ``...`` for a value, becomes a name. Blocks that begin with ``# at commit`` are left
    out: they are records of earlier code.
    """
    text = page.read_text(encoding="utf-8")
    blocks = [each for each in re.findall(_SHELL, text) if not each.startswith("# at commit")]
    inline = re.findall(r"`((?:make|bertillery|python -m) [^`]*=[^`]*)`", re.sub(_FENCED, "", text))
    number = itertools.count()
    script = re.sub(_PLACEHOLDER, lambda _: f"x{next(number)}", "\n".join([*blocks, *inline]))
    script = re.sub(r"\.venv/bin/|clusters/(?=\w+\.sh)", "", script)
    bash = ["/bin/bash", "-c", f"{_SAY}{script}\nend"]
    subprocess.run(bash, cwd=folder, env={"PATH": "/none"}, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    *found, last = (folder / "said").read_text(encoding="utf-8").removesuffix("\0\n\0").split("\0\n\0")
    assert last == "end", f"{page}: bash cannot read a command behind {found[-1:]}"
    return [each.split("\0") for each in found if each]


if __name__ == "__main__":
    for each in RUN:
        rewrite(each)

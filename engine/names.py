"""Names that a user gives and that become a part of a path: of runs, tasks, splits and projects.

They also stand in model cards, tables, pictures and on terminals, so a name is one line of plain text that is neither
markup nor a formula.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator

_MOST_BYTES = 200
"""Of one part; file systems take 255, and a folder's name gets endings of ours."""
_MOST_PARTS = 8
_REFUSED = frozenset("<>&\"'`\\|*?#%:;$/")


def check_name(text: str) -> str:
    """The name as it is; ``ValueError`` unless it is one folder's name: it begins with a letter, a digit or ``_``, and
    holds no sign that means something in a path, a shell, a web page or a table."""
    first = text[:1]
    if not (first.isalnum() or first == "_"):
        raise ValueError("a name begins with a letter, a digit or _, and is a folder's name, not a path")
    wrong = sorted({sign for sign in text if sign in _REFUSED or not sign.isprintable()})
    if wrong:
        raise ValueError(f"a name is a folder's name on one line, without {' '.join(map(ascii, wrong))}")
    if text != text.strip():
        raise ValueError("a name does not end with a space")
    if len(text.encode()) > _MOST_BYTES:
        raise ValueError(f"a name has at most {_MOST_BYTES} bytes, this one has {len(text.encode()):,}")
    return text


def check_path_name(text: str) -> str:
    """The same for a name of several parts with ``/`` between, each of which is a name."""
    parts = text.split("/")
    if len(parts) > _MOST_PARTS:
        raise ValueError(f"a name has at most {_MOST_PARTS} parts, this one has {len(parts)}")
    for part in parts:
        try:
            check_name(part)
        except ValueError as error:
            raise ValueError(f"{error}; / may stand between such names") from None
    return text


Name = Annotated[str, AfterValidator(check_name)]
"""A folder's name."""
PathName = Annotated[str, AfterValidator(check_path_name)]
"""Folders' names with ``/`` between them, below a folder that is given otherwise."""

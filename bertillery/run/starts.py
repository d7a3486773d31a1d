"""``starts.jsonl``: how a run was started and resumed, a line each time, with command, machine and versions.

Reports read it; a run never does. Runs of earlier versions have none.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from bertillery.system.files import writing

logger = logging.getLogger(__name__)


class Start(BaseModel):
    """One line."""

    step: int
    """The step that it began after: 0, or that of a checkpoint."""
    time: float
    """Seconds since 1970."""
    processes: int
    device: str
    """``cpu`` or ``cuda``."""
    precision: str
    environment: dict[str, Any]
    """:func:`bertillery.system.environment.environment`: versions, hardware, source, command."""
    data: dict[str, Any]
    """What the stage says of its data."""


def note_start(run: Path, **described: Any) -> None:
    """Append a line to the record in this folder; the keywords are the fields of :class:`Start` but ``time``."""
    start = Start(time=round(time.time(), 3), **described)
    file = run / "starts.jsonl"
    with writing(file), file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(start.model_dump()) + "\n")


def read_starts(run: Path) -> list[Start]:
    """The record of a run, from its first start on; lines that cannot be read are left out with a warning."""
    file, found = run / "starts.jsonl", []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else ():
        try:
            found.append(Start.model_validate_json(line))
        except ValidationError:
            logger.warning("%s: a damaged line is left out", file)
    return found

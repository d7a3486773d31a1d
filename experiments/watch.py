"""``python -m experiments.watch``: a run that trains, or has trained, on this machine, without an account.

Opens W&B's own viewer, in the terminal, on the newest offline record under `run`, which may be one run or the folder of
all; where there is no terminal it prints the run's state. With `to=trackio` it opens trackio's web page.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from bertillery.config.section import InputError, Section
from bertillery.config.types import Name
from bertillery.run.command import tool
from bertillery.run.tracking import TrackingSection


class WatchSection(Section):
    """Keys of the viewer."""

    run: Path = Path("runs")
    """Folder of a run, or of all runs."""
    to: Literal["wandb", "trackio"] = "wandb"
    """Where the run was recorded (`tracking.to`)."""
    project: Name = "bertillery"
    """Project of trackio's page (`tracking.project`)."""


def newest_record(folder: Path) -> Path:
    """The W&B file of the folder that was written last; ``InputError`` where there is none."""
    found = [*folder.glob("**/wandb/*run-*/run-*.wandb")] if folder.is_dir() else []
    if not found:
        raise InputError(
            f"run: {folder} {'has no W&B record' if folder.is_dir() else 'is not a folder'}; give the folder of a run "
            "that was started without tracking.wandb=off, such as runs/pretrain/<name>"
        )
    return max(found, key=lambda file: (file.stat().st_mtime_ns, file))


def main(arguments: Sequence[str]) -> int:
    """Become the viewer; returns the exit status only where there is nothing to view."""
    return tool(arguments, help=__doc__, schema=WatchSection, action=_run)


def _run(section: WatchSection) -> int:
    command = viewer(section, terminal=sys.stdout.isatty())
    sys.stdout.flush()
    os.execv(command[0], command)


def viewer(section: WatchSection, *, terminal: bool) -> list[str]:
    """The command that shows the run; ``InputError`` where there is no record or no viewer."""
    programs = Path(sys.executable).parent
    if section.to == "trackio":
        TrackingSection(to="trackio").check()
        return [str(programs / "trackio"), "show", "--project", section.project]
    record, wandb = newest_record(section.run), str(programs / "wandb")
    return [wandb, "leet", str(record.parent)] if terminal else [wandb, "leet", "inspect", "--summary", str(record)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""A folder that takes long to make, in which every test of a module finds the same files."""

from __future__ import annotations

import shutil
from pathlib import Path


def restored(made: Path) -> Path:
    """The folder as it was when this was called for the first time, whatever a test has done to its subfolders.

    Its path stays the same, since runs record where they are.
    """
    kept = made.with_name(f"{made.name}-kept")
    if not kept.exists():
        shutil.copytree(made, kept)
    for part in filter(Path.is_dir, kept.iterdir()):
        shutil.rmtree(made / part.name, ignore_errors=True)
        shutil.copytree(part, made / part.name)
    return made

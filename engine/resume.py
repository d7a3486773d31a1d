"""Where a run goes on from: the main process chooses, and all processes read the same files or none.

Each could look for itself, but another machine may see other files, or one process reject what the others accept; then
they would train on from different weights, and nothing would say so.
"""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object

from engine.checkpoint import difference, latest_checkpoint, read_manifest
from engine.config import InputError
from engine.tracking import read_rows

HELD_OUT = "held_out/"
"""How the names of held-out numbers begin in ``metrics.jsonl``."""


def newest_checkpoint(accelerator: Accelerator, folder: Path) -> Path | None:
    """The newest checkpoint that is whole in the main process's folder, by its place in this process's."""
    found = latest_checkpoint(folder) if accelerator.is_main_process else None
    (name,) = broadcast_object_list([found and found.name])
    return None if name is None else folder / name


def check_everywhere(accelerator: Accelerator, path: Path) -> None:
    """Raise ``InputError`` in all processes where one of them does not read a checkpoint as the main one does."""
    is_main = accelerator.is_main_process
    (manifest,) = broadcast_object_list([read_manifest(path) if is_main else ""])
    found = gather_object([None if is_main else difference(path, manifest)])
    defects = [f"process {process}: {defect}" for process, defect in enumerate(found) if defect]
    if defects:
        raise InputError(
            f"{path} is loaded by all processes, and {len(defects)} of {len(found)} do not have the main one's "
            f"({'; '.join(defects[:3])}); run.dir must be a folder that all machines share, or this checkpoint must "
            "be copied to each of them"
        )


def held_out_numbers(accelerator: Accelerator, metrics_file: Path, last: int) -> dict[int, dict[str, float]]:
    """The held-out numbers that the main process has on record, up to a step."""
    (found,) = broadcast_object_list([_held_out(metrics_file, last) if accelerator.is_main_process else {}])
    return found


def _held_out(metrics_file: Path, last: int) -> dict[int, dict[str, float]]:
    named = [
        (row["step"], {n.removeprefix(HELD_OUT): v for n, v in row.items() if n.startswith(HELD_OUT)})
        for row in read_rows(metrics_file)
    ]
    return {step: values for step, values in named if values and step <= last}

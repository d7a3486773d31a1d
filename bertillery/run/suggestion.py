"""Suggested commands: ``make`` with another target and the arguments of the previous command."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from bertillery.config.section import CONFIGS, names_file

TASKS = CONFIGS / "finetune"
"""Shipped tasks, given to ``make`` by name."""
_OF_ONE_RUN = ("run.seed", "run.name")


def make_command(
    target: str,
    given: Sequence[str],
    *more: str,
    model: str,
    run: Path,
    seeds: int | None = None,
    without: Collection[str] = (),
) -> str:
    """``make <target> TASK=... MODEL=...``, optionally ``SEEDS=``, and the other arguments in ``ARGS=``.

    ``given`` are the arguments of ``python -m finetune``; if they name no task file, the configuration of ``run`` is
    the task. Omits the run's seed and name and the keys ``without``; ``more`` replace arguments with the same key.
    """
    task = next(filter(names_file, given), str(run / "config.yaml"))
    named = Path(task).stem if Path(task).resolve().parent == TASKS else task
    replaced = {task, "model.from", *_OF_ONE_RUN, *without, *(each.split("=")[0] for each in more)}
    arguments = [*(each for each in given if each.split("=")[0] not in replaced), *more]
    quoted = " ".join(map(shlex.quote, arguments)).replace('"', '\\"')
    parts = [
        f"make {target} TASK={shlex.quote(named)} MODEL={shlex.quote(model)}",
        f"SEEDS={seeds}" * bool(seeds),
        f'ARGS="{quoted}"' * bool(quoted),
    ]
    return " ".join(filter(None, parts))

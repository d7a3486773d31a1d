"""What to type next: the command of ``make`` that does something else with what was given to the one before."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from pathlib import Path

from bertillery.config.section import CONFIGS, names_file

TASKS = CONFIGS / "finetune"
"""Where a task that is shipped is known by its name."""
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
    """``make <target> TASK=... MODEL=...``, with ``SEEDS=`` where asked for and all else that was given in ``ARGS=``.

    ``given`` are the arguments of ``python -m finetune``, the task's file among them; where there was none, the
    configuration of the ``run`` is. Seed and name of the run are left out, and the keys ``without``. ``more`` come
    behind them; what has the same key is replaced.
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

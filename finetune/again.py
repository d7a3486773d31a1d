"""What to type next: the command of ``make`` that does something else with what was given to the one before."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "finetune"
_OF_ONE_RUN = ("run.seed", "run.name")


def make_command(target: str, given: Sequence[str], *more: str, seeds: int | None = None) -> str:
    """``make <target> TASK=... MODEL=...``, with ``SEEDS=`` where asked for and all else that was given in ``ARGS=``.

    ``given`` are the arguments of ``python -m finetune``: the task's file, ``model.from=`` and the others. Seed and
    name of the run are left out. ``more`` come behind them; what has the same key is replaced.
    """
    task = next(each for each in given if "=" not in each)
    named = Path(task).stem if Path(task).resolve().parent == CONFIGS else task
    model = next(each for each in reversed(given) if each.startswith("model.from=")).removeprefix("model.from=")
    replaced = {task, "model.from", *_OF_ONE_RUN, *(each.split("=")[0] for each in more)}
    arguments = [*(each for each in given if each.split("=")[0] not in replaced), *more]
    quoted = " ".join(map(shlex.quote, arguments)).replace('"', '\\"')
    parts = [
        f"make {target} TASK={named} MODEL={model}",
        f"SEEDS={seeds}" * bool(seeds),
        f'ARGS="{quoted}"' * bool(quoted),
    ]
    return " ".join(filter(None, parts))

"""A search as a sweep of Weights & Biases, which draws the trials and hands them to agents on many machines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from finetune.space import Range, Space

_DISTRIBUTIONS = {"uniform": "uniform", "log_uniform": "log_uniform_values"}
"""What W&B calls them; its ``log_uniform`` wants the logarithms of the ends."""


def sweep_file(space: Space, *, arguments: Sequence[str], name: str, metric: str, trials: int, project: str) -> str:
    """The YAML for ``wandb sweep``, after its documented schema.

    ``arguments`` are what all runs of ``python -m finetune`` have; an agent adds a trial's. Their folders are
    ``<name>/sweep-<id of the run>``, and they record online, or the sweep would see none of them.
    """
    arguments = [*(given for given in arguments if not given.startswith("tracking.wandb=")), "tracking.wandb=online"]
    # Only whole items of a command are replaced, and the id is known to the run alone: a shell puts it into the name.
    start = f'exec "$0" -m finetune "$@" "run.name={name}/sweep-$WANDB_RUN_ID"'
    sweep: dict[str, Any] = {
        "name": name,
        "project": project,
        "program": "finetune/__main__.py",
        "method": "random" if space.size is None else "grid",
        "metric": {"name": f"held_out/{metric}", "goal": "maximize"},
        "run_cap": trials,
        "parameters": {key: _parameter(values) for key, values in space.settings.items()},
        "command": ["${env}", "bash", "-c", start, "${interpreter}", *arguments, "${args_no_hyphens}"],
    }
    head = "# wandb sweep <this file>, then, on each machine, in the root of the source and with .venv activated,\n"
    return f"{head}# what it answers: wandb agent <id>\n{yaml.safe_dump(sweep, sort_keys=False, width=1000)}"


def _parameter(values: Range | list[Any]) -> dict[str, Any]:
    if isinstance(values, Range):
        return {"distribution": _DISTRIBUTIONS[values.distribution], "min": values.low, "max": values.high}
    return {"distribution": "categorical", "values": values}

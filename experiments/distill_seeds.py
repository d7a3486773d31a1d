"""``python -m experiments.distill_seeds a.yaml task.yaml seeds=5 teacher.from=... model.from=...``: several seeds.

Every run is one of ``python -m distill``; what is finished is not run again. The table is that of fine-tuning's seeds.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence

from bertillery.config.section import ConfigError, Section, take
from bertillery.run.command import tool
from distill.config import TaskConfig, load_config
from distill.task import Answers
from experiments.seeds import Command, Runs, SeedsSection, check_data, run_all, tell


def _load(arguments: Sequence[str]) -> TaskConfig:
    config = load_config(arguments)
    if not isinstance(config, TaskConfig):
        raise ConfigError("several seeds are for a task: give TASK=<name>, and STUDENT=<directory or Hub id>")
    return config


DISTILL = Command("distill", _load, Answers)


def main(arguments: Sequence[str]) -> int:
    """Run what is missing and print the table; returns the exit status."""
    return tool(arguments, help=__doc__, schema=SeedsSection, action=lambda: _run(arguments), settings=_settings)


def _settings(arguments: Sequence[str]) -> list[Section]:
    section, rest = take(SeedsSection, arguments)
    return [section, Runs({1: rest}, DISTILL).stages[0].config]


def _run(arguments: Sequence[str]) -> int:
    section, rest = take(SeedsSection, arguments)
    runs = [Runs(dict.fromkeys(section.numbers, rest), DISTILL)]
    check_data(runs)
    return tell(runs, run_all(runs, section.side_by_side))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

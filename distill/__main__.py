"""``python -m distill a.yaml [task.yaml] teacher.from=<directory or Hub id> key.sub=value``: a student of a teacher.

Without a task a student is built and reads a corpus beside its teacher. With one, ``model.from`` names the student.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence

from bertillery.config.section import describe
from bertillery.engine.objective import describe_objectives
from bertillery.run.command import command
from distill.config import GeneralConfig, TaskConfig, load_config
from distill.general import General
from distill.task import Answers, FirstStage


def main(arguments: Sequence[str]) -> int:
    """Distil once; returns the exit status."""
    return command(arguments, help=__doc__, schema=GeneralConfig, load=load_config, run=run, more=_keys_for_a_task)


def _keys_for_a_task() -> str:
    """What ``--help`` says beside the keys of a general distillation."""
    general, answers = (describe_objectives("distill.objectives", section) for section in ("Config", "AnswersConfig"))
    return f"{general}\n\nFor a task:\n\n{describe(TaskConfig)}\n\n{answers}"


def run(config: GeneralConfig | TaskConfig) -> int:
    """Run all stages of a configuration, one after the other."""
    if isinstance(config, GeneralConfig):
        return General(config).run()
    if config.before is not None:
        status = FirstStage(config.before, then=config).run()
        if status:
            return status
    return Answers(config).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

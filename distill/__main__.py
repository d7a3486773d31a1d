"""``python -m distill a.yaml [task.yaml] teacher.from=<directory or Hub id> key.sub=value``: a student of a teacher.

Without a task a student is built and reads a corpus together with its teacher (task-agnostic distillation). With a task
``model.from`` names the student, which is fine-tuned (task-specific distillation).
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
from bertillery.run.stage import Stage
from distill.config import TaskAgnosticConfig, TaskConfig, load_config
from distill.stage import TaskAgnostic
from distill.task_stage import FirstStage, TaskSpecific
from finetune.task import describe_task_types


def main(arguments: Sequence[str]) -> int:
    """Distil once; returns the exit status."""
    return command(arguments, help=__doc__, schema=TaskAgnosticConfig, load=load_config, stages=stages, more=_more_keys)


def _more_keys() -> str:
    agnostic, task = (describe_objectives("distill.objectives", section) for section in ("Config", "AnswersConfig"))
    return f"{agnostic}\n\nFor a task:\n\n{describe(TaskConfig)}\n\n{describe_task_types()}\n\n{task}"


def stages(config: TaskAgnosticConfig | TaskConfig) -> list[Stage]:
    """The runs of a configuration, one after the other."""
    if isinstance(config, TaskAgnosticConfig):
        return [TaskAgnostic(config)]
    first = [FirstStage(config.before, then=config)] if config.before is not None else []
    return [*first, TaskSpecific(config)]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

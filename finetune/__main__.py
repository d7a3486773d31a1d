"""``python -m finetune task.yaml model.from=<directory or Hub id> key.sub=value``: one task, one seed."""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence

from bertillery.run.command import command
from finetune.config import FinetuneConfig, load_config
from finetune.stage import finetuning
from finetune.task import describe_task_types


def main(arguments: Sequence[str]) -> int:
    """Fine-tune once; returns the exit status."""
    return command(
        arguments,
        help=__doc__,
        schema=FinetuneConfig,
        load=load_config,
        stages=lambda config: [finetuning(config, arguments)],
        more=describe_task_types,
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

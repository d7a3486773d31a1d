"""``python -m experiments.finetune_rates task.yaml model.from=... lowest=1e-7``: which learning rates.

A fine-tuning whose learning rate grows from step to step; all other keys are those of ``python -m finetune``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence

from experiments.rates import range_command
from finetune.config import load_config
from finetune.stage import Finetuning


def main(arguments: Sequence[str]) -> int:
    """Run the test; returns the exit status."""
    return range_command(arguments, help=__doc__, load=load_config, stage=Finetuning)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

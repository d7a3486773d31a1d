"""``python -m experiments.pretrain_rates a.yaml lowest=1e-7 highest=1e-1 steps=100``: which learning rates.

A pretraining whose learning rate grows from step to step; all other keys are those of ``python -m pretrain``.
"""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence

from experiments.rates import range_command
from pretrain.__main__ import Pretraining
from pretrain.config import load_config


def main(arguments: Sequence[str]) -> int:
    """Run the test; returns the exit status."""
    return range_command(arguments, help=__doc__, load=load_config, stage=Pretraining)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

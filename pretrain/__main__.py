"""``python -m pretrain a.yaml key.sub=value``: corpus, tokenizer, training, export, report."""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence

from bertillery.engine.objective import describe_objectives
from bertillery.run.command import command
from pretrain.config import PretrainConfig, load_config
from pretrain.stage import stages


def main(arguments: Sequence[str]) -> int:
    """Run pretraining; returns the exit status."""
    return command(
        arguments,
        help=__doc__,
        schema=PretrainConfig,
        load=load_config,
        stages=stages,
        more=lambda: describe_objectives("pretrain.objectives"),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

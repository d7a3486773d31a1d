"""``python -m pretrain.prepare a.yaml key=value``: corpus and tokenizer of a pretraining run alone."""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence

from bertillery.data.prepare import prepare
from bertillery.data.prepared import corpus_report
from bertillery.run.command import tool
from pretrain.config import PretrainConfig, load_config


def main(arguments: Sequence[str]) -> int:
    """Prepare the corpus of a pretraining configuration and print what is in it; returns the exit status."""
    return tool(arguments, help=__doc__, schema=PretrainConfig, action=_run, read=load_config)


def _run(config: PretrainConfig) -> int:
    prepared = prepare(config.data, config.tokenizer, config.run.data_dir)
    print(f"{prepared.path}\n{corpus_report(prepared)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

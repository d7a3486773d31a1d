"""``python -m knowledge a.yaml key.sub=value``: vectors of the entities and relations of a graph, by TransE."""

from __future__ import annotations

if __name__ == "__main__":
    from bertillery.system.entry import begin

    begin()

import sys
from collections.abc import Sequence

from bertillery.run.command import command
from knowledge.stage import EmbedConfig, Embedding, load_config


def main(arguments: Sequence[str]) -> int:
    """Train; returns the exit status."""
    return command(
        arguments, help=__doc__, schema=EmbedConfig, load=load_config, stages=lambda config: [Embedding(config)]
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

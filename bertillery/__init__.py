"""What the stages share: configuration, files, the training loop, networks, data, reports.

Importing it registers our own model classes with the Auto classes of transformers.
"""

from __future__ import annotations

import sys
from pathlib import Path


def _is_command() -> bool:
    """Whether the program or ``python -m <stage>`` runs: it takes Ctrl-C over before it imports networks, which takes
    seconds, and registers the classes when it does so (:mod:`bertillery.models`)."""
    # While Python looks for the module of `python -m bertillery`, the first argument is -m.
    if sys.argv and Path(sys.argv[0]).name in ("-m", "bertillery"):
        return True
    specification = getattr(sys.modules.get("__main__"), "__spec__", None)
    name = getattr(specification, "name", "").partition(".")[0]
    rooms = "bertillery knowledge pretrain translation finetune prompting distill experiments deploy"
    return name in rooms.split()


if not _is_command():
    import bertillery.models  # noqa: F401

"""How this process was started, and what to type next in the same form: a target of make, or the program's command.

Commands are named as in both, settings by make's variables; the program has keys and names of configurations for them
(the table in ``docs/start/command_line.md``).
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

PROGRAM = "BERTILLERY_PROGRAM"
"""Environment variable that the program sets, for itself and for the processes that it starts."""
_MAKEFILE = Path(__file__).parents[2] / "Makefile"
_OF_TRAININGS = ("finetune", "search", "rates", "seeds")
_KEYS = {
    "MODEL": {"": "model", **dict.fromkeys(_OF_TRAININGS, "model.from"), "submission": ""},
    "TEACHER": {"": "teacher", "distill": "teacher.from"},
    "STUDENT": {"": "model.from"},
    "DATA": {"": "data.path", "predict": "data", "evaluate": "data"},
    "CONFIG": {"": ""},
    "TASK": {"": "", "seeds": "tasks"},
}
"""The key of a variable by command, the first where a command is not named; without a key the value stands alone.
Other keys are the variable's name."""
_LISTS = ("STUDENTS", "RUNS")
"""Variables that hold several values, with spaces between."""
_TO_FILL_IN = re.compile(r"([a-z.]+=)?\[?(\.\.\.|<[\w ,./]+>)\]?")


def by_make() -> bool:
    """Whether commands are typed as targets of make: where there is a Makefile, unless the program was started."""
    return PROGRAM not in os.environ and _MAKEFILE.is_file()


def command_line(command: str, *arguments: str, **variables: str | Path) -> str:
    """A command as it is typed: ``make finetune TASK=a MODEL=b ARGS="c=d"``, or the same in the program's form,
    ``bertillery finetune a model.from=b c=d``.

    What is for the user to fill in, ``<...>`` or ``...``, is not quoted.
    """
    if by_make():
        given = " ".join(map(_quoted, arguments)).replace('"', '\\"')
        parts = [f"make {command}", settings(command, **variables), f'ARGS="{given}"' if given else ""]
    else:
        name = "seeds" if "SEEDS" in variables or command == "glue" else command
        parts = [f"bertillery {name}", settings(name, **variables), *map(_quoted, arguments)]
    return " ".join(filter(None, parts))


def settings(command: str, **variables: str | Path) -> str:
    """Settings of a command without its name: ``TASK=a MODEL=b``, or ``a model.from=b``."""
    if by_make():
        return " ".join(f"{name}={_quoted(str(value))}" for name, value in variables.items())
    return " ".join(_argument(command, name, str(value)) for name, value in variables.items() if name != "HUB")


def installing(extra: str, target: str) -> str:
    """The command that installs optional packages."""
    return f"`make {target}`" if by_make() else f"`pip install 'bertillery[{extra}]'`"


def _argument(command: str, name: str, value: str) -> str:
    keys = _KEYS.get(name, {"": name.lower()})
    key = keys.get(command, keys[""])
    listed = f"[{','.join(value.split())}]" if name in _LISTS or key == "tasks" else value
    return _quoted(f"{key}={listed}" if key else value)


def _quoted(argument: str) -> str:
    return argument if _TO_FILL_IN.fullmatch(argument) else shlex.quote(argument)

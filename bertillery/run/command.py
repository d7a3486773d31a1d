"""A command line: ``--help``, ``--print-config``, and what is said when something is wrong."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from bertillery.config.section import InputError, Section, describe, dump, names_file, read_values, validate
from bertillery.engine.loop import DivergedError
from bertillery.run.stage import StageConfig
from bertillery.system.entry import INTERRUPTED, StoppedError, interruptible
from bertillery.system.workers import lost_worker

C = TypeVar("C", bound=StageConfig)


def command(
    arguments: Sequence[str],
    *,
    help: str | None,
    schema: type[C],
    load: Callable[[Sequence[str]], C],
    run: Callable[[C], int],
    more: Callable[[], str] = str,
) -> int:
    """Run a stage's command line: ``--help``, which ends with ``more``, ``--print-config``, or the run itself; returns
    the exit status."""

    def action() -> int:
        status = run(load(arguments))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # not between stages: it cannot be made a second time
        return status

    return tool(arguments, help=help, schema=schema, action=action, settings=lambda given: [load(given)], more=more)


def tool(
    arguments: Sequence[str],
    *,
    help: str | None,
    schema: type[Section],
    action: Callable[[], int],
    settings: Callable[[Sequence[str]], Sequence[Section]] | None = None,
    more: Callable[[], str] = str,
) -> int:
    """Run a command line of which the ``schema`` has the keys: ``--help``, which ends with ``more``,
    ``--print-config``, or the ``action``; returns the exit status.

    What is printed as the configuration, a YAML document each, ``settings`` makes of the arguments; where it is not
    given, the schema alone does.
    """

    def asked() -> int:
        if "--help" in arguments or "-h" in arguments:
            print("\n\n".join(filter(None, [(help or "").rstrip(), describe(schema), more()])))
            return 0
        if "--print-config" in arguments:
            given = [argument for argument in arguments if argument != "--print-config"]
            sections = settings(given) if settings else [validate(schema, *read_values(given))]
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            print("---\n".join(dump(section, encoding) for section in sections), end="")
            return 0
        return action()

    return guarded(asked)


def guarded(action: Callable[[], int]) -> int:
    """Do what a command does and return its status: 2, and one message, for what a user can do something about."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal may know fewer characters than a text has
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in ("bertillery", "pretrain", "finetune", "distill", "experiments", "deploy"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        with interruptible():
            return action()
    except (InputError, DivergedError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        lost = lost_worker(error)
        if lost is None:
            raise
        print(f"error: {lost}", file=sys.stderr)
        return 2
    except StoppedError as stopped:
        print(f"{stopped.name}: what ran has saved itself and left; type the same command to go on.", file=sys.stderr)
        return stopped.status
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130


def run_name(arguments: Sequence[str], otherwise: str) -> str:
    """A run without a name is called after its configuration files."""
    return "-".join(Path(argument).stem for argument in arguments if names_file(argument)) or otherwise

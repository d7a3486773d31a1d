"""A command line: ``--help``, ``--print-config``, and errors as one message."""

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
    """Run a stage's command line and return the exit status: ``--help``, which ends with ``more``, ``--print-config``,
    or the run."""

    def action() -> int:
        status = run(load(arguments))
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # after all stages: it cannot be made twice
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
    """Run a command line with the keys of ``schema`` and return the exit status: ``--help``, which ends with ``more``,
    ``--print-config``, or the ``action``.

    ``settings`` turns the arguments into the sections that ``--print-config`` prints, each as a YAML document; by
    default the schema is read alone.
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
    """Run a command and return its status: 2, after one message, for errors that a user can correct."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal may lack characters
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
        print(
            f"{stopped.name}: running trainings have saved a checkpoint and stopped; type the same command to resume.",
            file=sys.stderr,
        )
        return stopped.status
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        return 130


def run_name(arguments: Sequence[str], otherwise: str) -> str:
    """Default name of a run: its configuration files' names joined."""
    return "-".join(Path(argument).stem for argument in arguments if names_file(argument)) or otherwise

"""A command line: ``--help``, ``--print-config``, errors as one message, and the next command to suggest."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

from bertillery.config.layers import CONFIGS, dump, names_file, read_values
from bertillery.config.section import InputError, Section, describe_sections, validate
from bertillery.engine.loop import DivergedError
from bertillery.run.rehearsal import rehearse
from bertillery.run.stage import Stage, StageConfig
from bertillery.system.entry import INTERRUPTED, StoppedError, interruptible
from bertillery.system.invocation import command_line, settings
from bertillery.system.workers import lost_worker

C = TypeVar("C", bound=StageConfig)
S = TypeVar("S", bound=Section)
_ROOMS = (
    *("bertillery", "knowledge", "pretrain", "finetune", "translation", "prompting", "distill"),
    *("experiments", "deploy", "pages"),
)
"""Whose loggers tell a user something."""
DRY_RUN = "--dry-run"


def command(
    arguments: Sequence[str],
    *,
    help: str | None,
    schema: type[C],
    load: Callable[[Sequence[str]], C],
    stages: Callable[[C], Iterable[Stage]],
    more: Callable[[], str] = str,
) -> int:
    """Run the command line of a training and return the exit status: ``--help``, which ends with ``more``,
    ``--print-config``, ``--dry-run``, or the ``stages`` one after the other, up to the first that is stopped."""
    given = [argument for argument in arguments if argument != DRY_RUN]

    def action() -> int:
        runs = stages(load(given))
        status = rehearse(runs) if DRY_RUN in arguments else next(filter(None, (each.run() for each in runs)), 0)
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # after all stages: it cannot be made twice
        return status

    return cli(given, help=help, schema=schema, action=action, settings=lambda each: [load(each)], more=more)


def tool(
    arguments: Sequence[str],
    *,
    help: str | None,
    schema: type[S],
    action: Callable[[S], int],
    read: Callable[[Sequence[str]], S] | None = None,
) -> int:
    """Run the command line of a command with one section and return the exit status; ``read`` makes the section of the
    arguments, if they are more than its keys."""

    def section(given: Sequence[str]) -> S:
        return read(given) if read else validate(schema, *read_values(given))

    def act() -> int:
        return action(section(arguments))

    return cli(arguments, help=help, schema=schema, action=act, settings=lambda given: [section(given)])


def cli(
    arguments: Sequence[str],
    *,
    help: str | None,
    schema: type[Section],
    action: Callable[[], int],
    settings: Callable[[Sequence[str]], Sequence[Section]],
    more: Callable[[], str] = str,
) -> int:
    """Run a command line with the keys of ``schema`` and return the exit status: ``--help``, which ends with ``more``,
    ``--print-config``, or the ``action``.

    ``settings`` turns the arguments into the sections that ``--print-config`` prints, each as a YAML document.
    """

    def asked() -> int:
        if "--help" in arguments or "-h" in arguments:
            print("\n\n".join(filter(None, _help(arguments, help, schema, more))))
            return 0
        if "--print-config" in arguments:
            given = [argument for argument in arguments if argument != "--print-config"]
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            print("---\n".join(dump(section, encoding) for section in settings(given)), end="")
            return 0
        return action()

    return guarded(asked)


def _help(arguments: Sequence[str], help: str | None, schema: type[Section], more: Callable[[], str]) -> list[str]:
    """Parts of ``--help``: all sections, or the one that is named behind it."""
    at = next(place for place, argument in enumerate(arguments) if argument in ("--help", "-h"))
    behind = [argument for argument in arguments[at + 1 :] if not names_file(argument) and "=" not in argument]
    if not behind:
        return [(help or "").rstrip(), describe_sections(schema), more()]
    # Kinds of an objective or a task have keys of their own.
    return [describe_sections(schema, behind[0]), more() if behind[0] in ("objective", "task") else ""]


def guarded(action: Callable[[], int]) -> int:
    """Run a command and return its status: 2, after one message, for errors that a user can correct."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # the terminal may lack characters
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for package in _ROOMS:
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


def quoted(arguments: Sequence[str], key: str) -> list[str]:
    """The arguments with the text after ``key=`` quoted, so that it stays text, whatever YAML would make of it; a list
    in brackets stays a list."""
    start = f"{key}="

    def each(argument: str) -> str:
        text = argument.removeprefix(start)
        plain = argument.startswith(start) and not text.startswith("[")
        return f"{start}[{as_yaml(text)}]" if plain else argument

    return [each(argument) for argument in arguments]


def as_yaml(text: str) -> str:
    """A YAML scalar of this text: in quotes, with escapes for what a YAML file may not hold."""
    given = json.dumps(text, ensure_ascii=False)  # JSON's escapes of two halves are two characters in YAML
    return _NOT_IN_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", given)


_NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def given_texts(texts: Sequence[str], file: Path | None, *, key: str, what: str) -> list[str]:
    """The texts of a command: those given as ``key``, and the lines of a file; if there are none, the environment
    variable that ``make`` sets, ``key`` in capitals. ``InputError`` without any; ``what`` says what they are."""
    found = list(texts)
    if file is not None:
        if not file.is_file():
            raise InputError(f"file: {file}: no such file; it holds {what} on each line")
        found += file.read_text(encoding="utf-8").splitlines()
    variable = key.upper()
    if not found and variable in os.environ:
        found = [os.environ[variable]]
    if not found:
        given = settings("generate", **{variable: "..."})
        raise InputError(f"no {key}: give {given}, or file=<{what} on each line>")
    return found


def run_name(arguments: Sequence[str], otherwise: str) -> str:
    """Default name of a run: its configuration files' names joined."""
    return "-".join(Path(argument).stem for argument in arguments if names_file(argument)) or otherwise


TASKS = CONFIGS / "finetune"
"""Shipped tasks, given by name."""
_OF_ONE_RUN = ("run.seed", "run.name")


def task_command(
    command: str,
    given: Sequence[str],
    *more: str,
    model: str,
    run: Path,
    seeds: int | None = None,
    without: Collection[str] = (),
) -> str:
    """The command for a task and a model as it is typed, optionally with several seeds, and with the other arguments.

    ``given`` are the arguments of ``python -m finetune``; if they name no task file, the configuration of ``run`` is
    the task. Omits the run's seed and name and the keys ``without``; ``more`` replace arguments with the same key.
    """
    task = next(filter(names_file, given), str(run / "config.yaml"))
    named = Path(task).stem if Path(task).resolve().parent == TASKS else task
    replaced = {task, "model.from", *_OF_ONE_RUN, *without, *(each.split("=")[0] for each in more)}
    arguments = [*(each for each in given if each.split("=")[0] not in replaced), *more]
    several = {"SEEDS": str(seeds)} if seeds else {}
    return command_line(command, *arguments, TASK=named, MODEL=model, **several)

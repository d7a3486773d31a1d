"""``bertillery <command> [configuration ...] [key.sub=value ...]``: all commands in one program.

A configuration is the name of one that is shipped (``bertillery pretrain bert_mini``), or a YAML file. Every command
has ``--help``, ``--help <section>`` and ``--print-config``; trainings also have ``--dry-run``.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from bertillery.config.layers import CONFIGS, names_file
from bertillery.config.section import ConfigError
from bertillery.system.entry import begin
from bertillery.system.invocation import PROGRAM


@dataclass(frozen=True)
class Command:
    """One command of the program."""

    module: str
    """Its module, whose ``main`` takes the arguments."""
    about: str
    """One line for the list of commands."""
    folders: tuple[str, ...] = ()
    """Folders of ``configs`` whose files are given by name."""


COMMANDS = {
    "data": Command("pretrain.prepare", "prepare corpus and tokenizer alone", ("pretrain", ".")),
    "pretrain": Command("pretrain.__main__", "pretrain an encoder or a causal model", ("pretrain", ".")),
    "embed": Command("knowledge.__main__", "vectors of a knowledge graph, by TransE", ("embed",)),
    "finetune": Command("finetune.__main__", "fine-tune a model on a task", ("finetune", "translation")),
    "distill": Command("distill.__main__", "distil a student from a teacher", ("distill", "finetune")),
    "seeds": Command("experiments.seeds", "tasks with several seeds, and their table", ("distill", "finetune")),
    "search": Command("experiments.search", "search settings of a fine-tuning", ("finetune",)),
    "rates": Command("experiments.rates", "learning-rate range test", ("pretrain", "finetune", "distill")),
    "submission": Command("experiments.glue", "the archive for gluebenchmark.com"),
    "generate": Command("prompting.generate", "continue a text with a causal model"),
    "fewshot": Command("prompting.fewshot", "evaluate a causal model in context", ("finetune", "prompting")),
    "probes": Command("prompting.probes", "does a causal model learn from its context?"),
    "translate": Command("translation.__main__", "translate sentences"),
    "predict": Command("deploy.predict", "predictions beside the rows of a file", ("finetune",)),
    "evaluate": Command("deploy.evaluate", "scores of a model, without training", ("finetune",)),
    "export": Command("deploy.export", "export a run again, from a checkpoint"),
    "push": Command("deploy.push", "publish a model on the Hub; shows first what would go"),
    "compare": Command("deploy.compare", "teacher and students side by side"),
    "onnx": Command("deploy.onnx", "export to ONNX, in float32 and int8"),
    "report": Command("pages.report", "one page over runs"),
    "inspect": Command("pages.inspect", "a page of what a model does with a text"),
    "watch": Command("experiments.watch", "a run on this machine in the terminal"),
    "dashboard": Command("experiments.dashboard", "workspaces in W&B, built from code"),
    "schema": Command("deploy.schema", "JSON schemas of the configurations, for editors"),
}
"""All commands, in the order of the list: a new one is a line here."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command of the program, by default that of the command line; returns the exit status."""
    if arguments is None:
        begin()
        os.environ[PROGRAM] = "1"
    name, *given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if name in ("--help", "-h", "help"):
        print(_overview())
        return 0
    if name == "--version":
        print(f"bertillery {_version()}")
        return 0
    try:
        command = _command(name)
        asked = next((place for place, argument in enumerate(given) if argument in ("--help", "-h")), len(given))
        resolved = [file for argument in given[:asked] for file in resolve(argument, command)]
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return importlib.import_module(command.module).main([*resolved, *given[asked:]])  # behind --help stands a section


def resolve(argument: str, command: Command) -> list[str]:
    """The files of a shipped configuration that is given by name, from every folder of the command that has it; other
    arguments as they are. ``ConfigError`` for an unknown name."""
    if not command.folders or not argument or argument.startswith("-") or "=" in argument or names_file(argument):
        return [argument]
    found = [CONFIGS / folder / f"{argument}.yaml" for folder in command.folders]
    files = [str(file) for file in found if file.is_file()]
    if files:
        return files
    known = {file.stem for folder in command.folders for file in (CONFIGS / folder).glob("*.yaml")}
    near = difflib.get_close_matches(argument, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(sorted(known))}"
    raise ConfigError(f"no configuration {argument!r}; {hint} A file of yours ends in .yaml, a setting is key=value")


def _command(name: str) -> Command:
    if name in COMMANDS:
        return COMMANDS[name]
    near = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(COMMANDS)}"
    raise ConfigError(f"no command {name!r}; {hint}")


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.about}" for name, command in COMMANDS.items()]
    return "\n".join([(__doc__ or "").replace("``", ""), "Commands:", *lines])


def _version() -> str:
    try:
        return version("bertillery")
    except PackageNotFoundError:  # run from a folder that is not installed
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())

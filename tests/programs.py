"""Programs of ours, forked from a process that has imported the libraries once: the imports are most of a short run.

A program sees what ``python -m`` would show it, but for variables that libraries read while they are imported.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]


class Finished(NamedTuple):
    """A program that has ended."""

    status: int
    """The exit status; of several processes the first that is not 0."""
    output: str
    """What it wrote, errors, too; of several processes one after the other."""


def run_program(program: str, *arguments: str, processes: int = 1) -> Finished:
    """``python -m program arguments``, or of a file, in the environment of the test, as one process or as several, each
    with its rank."""
    around = [dict(os.environ)]
    if processes > 1:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        together = {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
        together |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        around = [os.environ | together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(processes)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, str(rank)) for rank in range(processes)]
        asked = [{"environment": {**e}, "output": str(f)} for e, f in zip(around, files, strict=True)]
        to_server, from_server = _server()
        to_server.write(json.dumps({"arguments": [program, *arguments], "processes": asked}) + "\n")
        to_server.flush()
        statuses: list[int] = json.loads(from_server.readline())
        return Finished(next(filter(None, statuses), 0), "".join(file.read_text() for file in files))


@cache
def _server() -> tuple[IO[str], IO[str]]:
    """One for each process that runs tests; it ends when its standard input does."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "tests.programs"]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=pipe, stdout=pipe, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    return server.stdin, server.stdout


def _serve() -> None:
    for module in ("pretrain.stage", "finetune.stage", "distill.stage"):
        import_module(module)
    for line in sys.stdin:
        asked = json.loads(line)
        children = [_fork(asked["arguments"], **process) for process in asked["processes"]]
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def _fork(arguments: list[str], environment: Mapping[str, str], output: str) -> int:
    if child := os.fork():
        return child
    status: Any = 1
    try:
        os.environ.clear()
        os.environ.update(environment)
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.argv = arguments
        program = arguments[0]
        if program.endswith(".py"):
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        status = 0
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()  # pyright: ignore[reportAttributeAccessIssue]
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


if __name__ == "__main__":
    _serve()

from __future__ import annotations

import functools
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bertillery.run.command import guarded
from experiments.jobs import Job, run_jobs

RUN = """
import os, signal, sys
try:
    from bertillery.system.entry import begin
except ImportError:
    begin = lambda: None
begin()
def leave(number, frame):
    open(sys.argv[1], "w").write("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, leave)
signal.signal(signal.SIGINT, leave)
signal.alarm(30)
os.write(os.open(sys.argv[2], os.O_WRONLY), b"x")
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="what ends a child with its parent is Linux's")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_runs_save_themselves_when_their_command_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """The command leaves behind them, with the status of its signal; what had not begun does not."""
    (tmp_path / "a_run.py").write_text(RUN)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{Path(__file__).resolve().parents[2]}")
    os.mkfifo(tmp_path / "began")
    jobs = [
        Job(f"{seed}", (f"{tmp_path}/saved-{seed}", f"{tmp_path}/began"), tmp_path / f"{seed}.log", "a_run")
        for seed in range(3)
    ]
    ended, holds = os.pipe()  # the pipe ends with the last process that has it open, and the runs have it, too
    run = functools.partial(subprocess.Popen, pass_fds=[holds])
    monkeypatch.setattr(subprocess, "Popen", run)
    command = os.fork()
    if command == 0:
        sys.stderr = (tmp_path / "said").open("w", buffering=1)
        os._exit(guarded(lambda: len(run_jobs(jobs, side_by_side=2))))
    os.close(holds)
    began = os.open(tmp_path / "began", os.O_RDONLY)
    left = 2
    while left:
        left -= len(os.read(began, 2))
    os.kill(command, number)
    _, status = os.waitpid(command, 0)
    gone, _, _ = select.select([ended], [], [], 10)
    assert gone
    assert [file.read_text() for file in sorted(tmp_path.glob("saved-*"))] == ["saved", "saved"]
    if number != signal.SIGKILL:
        assert os.waitstatus_to_exitcode(status) == 128 + number
        assert f"{number.name}: running trainings have saved" in (tmp_path / "said").read_text()


def test_the_log_of_a_run_that_another_process_is_at_is_kept(tmp_path: Path) -> None:
    """Two commands have the same runs: what the first one's wrote stays."""
    (tmp_path / "a.log").write_text("what the other process wrote\n")
    assert run_jobs([Job("a", ("--help",), tmp_path / "a.log")]) == []
    written = (tmp_path / "a.log").read_text()
    assert written.startswith("what the other process wrote\n")
    assert "one task, one seed" in written

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bertillery.run.command import guarded
from bertillery.system import entry

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for package in ("pretrain", "finetune", "distill", "experiments", "deploy")
    for path in (ROOT / package).rglob("*.py")
    if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
)


def test_an_interrupt_during_the_imports_is_one_line(tmp_path: Path) -> None:
    """Of every command. The libraries, of which each imports one first, interrupt the process that does."""
    for library in ("numpy", "torch", "pydantic", "yaml"):
        (tmp_path / f"{library}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    assert {"pretrain.__main__", "pretrain.prepare", "experiments.seeds", "deploy.compare"} <= {*COMMANDS}
    for command in COMMANDS:
        arguments = [sys.executable, "-m", command.removesuffix(".__main__"), "--help"]
        done = subprocess.run(arguments, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (done.stderr, done.returncode) == (f"{entry.INTERRUPTED}\n", 130), command


@pytest.mark.parametrize(
    ("given", "turns"), [({}, 20000), ({"OMP_WAIT_POLICY": "passive"}, 0), ({"GOMP_SPINCOUNT": "7"}, 7)]
)
def test_threads_that_wait_let_others_work(tmp_path: Path, given: dict[str, str], turns: int) -> None:
    """By OpenMP's own account as torch is loaded; a user who says how to wait is heard."""
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    library = next(Path(spec.origin).parent.glob("lib/libgomp*"), None)
    if library is None:
        pytest.skip("this torch has another OpenMP")
    (tmp_path / "torch.py").write_text(f"import ctypes, os\nctypes.CDLL({str(library)!r})\nos._exit(0)\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("OMP_WAIT_POLICY",)}
    environment |= {"PYTHONPATH": str(tmp_path), "OMP_DISPLAY_ENV": "verbose", **given}
    done = subprocess.run([sys.executable, "-m", "pretrain"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert f"GOMP_SPINCOUNT = '{turns}'" in done.stderr


def test_within_a_command_an_interrupt_is_pythons_and_after_it_as_before() -> None:
    def interrupted() -> int:
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")

    before = signal.signal(signal.SIGINT, entry._leave)
    try:
        assert guarded(interrupted) == 130
        assert signal.getsignal(signal.SIGINT) is entry._leave
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif(sys.platform != "linux", reason="what ends a child with its parent is Linux's")
@pytest.mark.parametrize("gone_before", [False, True])
def test_a_command_ends_with_the_one_that_started_it(gone_before: bool) -> None:
    """Also where that one was gone before the child had said so."""
    ended, holds = os.pipe()
    began, begins = os.pipe()
    parent = os.fork()
    if parent == 0:
        number = os.getpid()
        if os.fork() == 0:
            entry.end_with(1 << 30 if gone_before else number, signal.SIGTERM)
            os.write(begins, b"x")
            signal.pause()
        os.close(begins)
        os.read(began, 1)
        os._exit(0)
    os.close(holds)
    os.close(begins)
    os.waitpid(parent, 0)
    assert os.read(ended, 1) == b"", "the pipe ends with the last process that has it open"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_the_old_handlers_return(number: signal.Signals):
    before = signal.getsignal(number)
    with entry.StopSignal() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts_but_an_echo_of_the_first_does_not(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(entry.time, "monotonic", lambda: now[0])
    with entry.StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 0.1
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 10
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"

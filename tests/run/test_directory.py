from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

import bertillery.run.directory
from bertillery.config.section import ConfigError, dump, validate
from bertillery.engine.optim import OptimSection
from bertillery.run.directory import (
    RunDirectory,
    RunSection,
    StopSignal,
    choose_precision,
    keep_large_blocks,
    start_accelerator,
)
from bertillery.run.stage import Stage, StageConfig
from bertillery.system.environment import environment

CONFIG = "run: {seed: 1, threads: 2, name: a}\noptim: {rate: 5.0e-05}\ntracking: {project: p}\n"


def test_start_and_resume(tmp_path: Path):
    run = RunDirectory.open(tmp_path / "runs" / "a", CONFIG)
    assert (run.path / "config.yaml").read_text() == CONFIG
    assert not run.finished
    changed = CONFIG.replace("threads: 2", "threads: 4").replace("project: p", "project: q")
    assert RunDirectory.open(run.path, changed).path == run.path
    assert (run.path / "config.yaml").read_text() == CONFIG
    run.finish({"loss": 1.5})
    assert RunDirectory.open(run.path, CONFIG).finished
    assert run.results["loss"] == 1.5
    assert not [*run.path.glob("*.partial")]


@pytest.mark.parametrize("is_main", [True, False])
def test_another_run_is_refused_on_every_process(tmp_path: Path, is_main: bool):
    RunDirectory.open(tmp_path / "a", CONFIG)
    other = "run: {seed: 2, threads: 2}\noptim: {rate: 5.0e-05, clip: 1.0}\n"
    with pytest.raises(ConfigError) as caught:
        RunDirectory.open(tmp_path / "a", other, is_main=is_main)
    message = str(caught.value)
    assert "run.seed: 1 there, 2 given" in message
    assert "optim.clip: nothing there, 1.0 given" in message
    assert message.count("  - ") == 2, message
    assert "run.name=" in message
    assert (tmp_path / "a" / "config.yaml").read_text() == CONFIG


def test_keys_that_are_younger_than_a_run_had_their_defaults(tmp_path: Path):
    """An update of the package does not disown the runs that were made before it."""
    today = dump(OptimSection())
    older = "".join(line for line in today.splitlines(True) if not line.startswith("loss_reduction"))
    assert older != today
    RunDirectory.open(tmp_path / "a", older)
    assert RunDirectory.open(tmp_path / "a", today, schema=OptimSection).path == tmp_path / "a"
    assert (tmp_path / "a" / "config.yaml").read_text() == older
    other = dump(OptimSection(loss_reduction="sum"))
    with pytest.raises(ConfigError, match="loss_reduction: 'mean' there, 'sum' given"):
        RunDirectory.open(tmp_path / "a", other, schema=OptimSection)
    RunDirectory.open(tmp_path / "b", f"{older}momentum: 0.9\n")  # a key that is no more: nothing is filled in
    with pytest.raises(ConfigError, match=r"momentum: 0\.9 there, nothing given"):
        RunDirectory.open(tmp_path / "b", today, schema=OptimSection)


@pytest.mark.parametrize("is_main", [True, False])
def test_a_folder_of_something_else_is_refused(tmp_path: Path, is_main: bool):
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(ConfigError, match="is not a run"):
        RunDirectory.open(tmp_path, CONFIG, is_main=is_main)
    with pytest.raises(ConfigError, match="is not a run"):
        RunDirectory.open(tmp_path / "thesis.tex", CONFIG, is_main=is_main)
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


def test_only_the_main_process_writes(tmp_path: Path):
    RunDirectory.open(tmp_path / "a", CONFIG, is_main=False)
    assert not (tmp_path / "a").exists()


def test_a_crash_while_starting_is_no_obstacle(tmp_path: Path):
    (tmp_path / "config.yaml.123.partial").write_text("run: {se")
    with RunDirectory.open(tmp_path, CONFIG, is_main=False).held():
        RunDirectory.open(tmp_path, CONFIG)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["config.yaml", "lock"]


def test_a_run_is_one_process_at_a_time(tmp_path: Path):
    held = RunDirectory.open(tmp_path / "run", "a: 1\n")
    with held.held(), pytest.raises(ConfigError, match="another process is at this run"), held.held():
        pass
    with held.held():  # let go of when it ended
        pass


def test_a_child_does_not_hold_the_run_when_its_parent_is_gone(tmp_path: Path):
    run = RunDirectory.open(tmp_path / "run", "a: 1\n")
    stays, ends = os.pipe()
    began, begins = os.pipe()
    parent = os.fork()
    if parent == 0:
        with run.held():
            if os.fork() == 0:
                os.close(ends)
                os.write(begins, b"x")
                os.read(stays, 1)
            else:
                os.read(began, 1)
            os._exit(0)
    os.waitpid(parent, 0)
    with run.held():
        pass
    os.close(ends)


def test_the_configuration_is_written_by_the_one_that_holds_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    written = []

    def write(path: Path, text: str) -> None:
        with pytest.raises(ConfigError, match="another process is at this run"), RunDirectory(path.parent).held():
            pass
        written.append(path.name)

    class Toy(Stage):
        folder = "toy"

        def start(self) -> Any:
            self.accelerator = Accelerator(cpu=True)

        prepare = banner = current = result = show = ending = lambda *_: None
        _train = lambda *_: 0  # noqa: E731

    monkeypatch.setattr(bertillery.run.directory, "write_text", write)
    assert Toy(StageConfig(run=RunSection(name="a", dir=tmp_path))).run() == 0
    assert written == ["config.yaml"]


def test_nothing_is_written_through_a_link(tmp_path: Path):
    (tmp_path / "mine").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    for name in ("config.yaml.partial", f"config.yaml.{os.getpid()}.partial"):
        (run / name).symlink_to(tmp_path / "mine")
    RunDirectory.open(run, CONFIG)
    assert (tmp_path / "mine").read_text() == "mine"
    (run / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"lock is a symbolic link.*; delete it"), RunDirectory(run).held():
        pass
    assert (tmp_path / "mine").read_text() == "mine"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_the_old_handlers_return(number: signal.Signals):
    before = signal.getsignal(number)
    with StopSignal() as stop:
        assert stop.requested is None
        os.kill(os.getpid(), number)
        assert stop.requested == number.name
    assert signal.getsignal(number) is before


def test_a_second_interrupt_interrupts_but_an_echo_of_the_first_does_not(monkeypatch: pytest.MonkeyPatch):
    now = [100.0]
    monkeypatch.setattr(bertillery.run.directory.time, "monotonic", lambda: now[0])
    with StopSignal() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 0.1
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 10
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch):
    for native, chosen in [(True, "bf16"), (False, "fp32")]:
        for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
            monkeypatch.setattr(torch.cpu, check, lambda native=native: native)
        assert choose_precision("auto", on_gpu=False)[0] == chosen
        assert choose_precision("bf16", on_gpu=False)[0] == "bf16"
        assert choose_precision("fp32", on_gpu=False)[0] == "fp32"
    assert choose_precision("auto", on_gpu=False)[1] == "this CPU does not multiply bfloat16 natively"
    for check in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.delattr(torch.cpu, check)
    assert choose_precision("auto", on_gpu=False)[0] == "fp32"


def test_accelerator_on_cpu(caplog: pytest.LogCaptureFixture):
    threads = torch.get_num_threads()
    try:
        with caplog.at_level("INFO", logger="bertillery.run.directory"):
            section = validate(RunSection, {"device": "cpu", "precision": "bf16", "threads": 1})
            accelerator = start_accelerator(section)
        assert (accelerator.device.type, accelerator.mixed_precision) == ("cpu", "bf16")
        assert torch.get_num_threads() == 1
        assert "precision bf16 (as configured; this CPU" in caplog.text
    finally:
        torch.set_num_threads(threads)
        accelerator_state_reset()


def test_accelerate_is_told_of_the_cpu(monkeypatch: pytest.MonkeyPatch):
    """Left to itself it would not see the other processes of torchrun on a machine without a GPU."""
    told = []

    def accelerator(**options: object) -> Accelerator:
        told.append(options["cpu"])
        return Accelerator(cpu=True)

    monkeypatch.setattr(bertillery.run.directory, "Accelerator", accelerator)
    try:
        for available, device in [(False, "auto"), (True, "cpu"), (True, "auto")]:
            monkeypatch.setattr(torch.accelerator, "is_available", lambda available=available: available)
            start_accelerator(validate(RunSection, {"device": device, "precision": "fp32"}))
    finally:
        accelerator_state_reset()
    assert told == [True, True, False]


def accelerator_state_reset() -> None:
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


def test_large_blocks_can_be_kept_or_it_does_nothing(monkeypatch: pytest.MonkeyPatch):
    keep_large_blocks()
    monkeypatch.setattr(bertillery.run.directory.platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(bertillery.run.directory.ctypes, "CDLL", None)
    keep_large_blocks()


def test_environment_is_json_and_names_no_machine():
    found = environment()
    json.dumps(found)
    assert found["torch"] == torch.__version__
    assert found["cores"] >= 1
    assert not {"host", "hostname", "node"} & found.keys()


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    with pytest.raises(
        ConfigError, match=r"8 processes on this machine: given 8 GPUs, but this machine has 4; give GPUS=4"
    ):
        start_accelerator(RunSection())

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

import bertillery.run.directory
from bertillery.config.layers import dump
from bertillery.config.section import ConfigError
from bertillery.engine.optim import OptimSection
from bertillery.run.device import RunSection
from bertillery.run.directory import RunDirectory
from bertillery.run.stage import Stage, StageConfig

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
    assert "run.seed: the saved run has 1, this command has 2" in message
    assert "optim.clip: the saved run has nothing, this command has 1.0" in message
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
    with pytest.raises(ConfigError, match="loss_reduction: the saved run has 'mean', this command has 'sum'"):
        RunDirectory.open(tmp_path / "a", other, schema=OptimSection)
    RunDirectory.open(tmp_path / "b", f"{older}momentum: 0.9\n")  # a key that is no more: nothing is filled in
    with pytest.raises(ConfigError, match=r"momentum: the saved run has 0\.9, this command has nothing"):
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

        prepare = banner = current = result = show = draw = subject = ending = lambda *_: None
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

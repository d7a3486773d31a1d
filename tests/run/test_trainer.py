"""Which evaluation ends a training, and which weights leave it."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from bertillery.config.section import validate
from bertillery.engine import meter
from bertillery.engine.batch import PackedBatch, pack
from bertillery.engine.evaluate import HeldOut, Sums
from bertillery.engine.loop import DivergedError
from bertillery.engine.objective import Objective, Shown, Term
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.engine.schedule import Schedule, TrainSection
from bertillery.run import trainer as fit
from bertillery.run.device import RunSection, start_accelerator
from bertillery.run.directory import RunDirectory
from bertillery.run.tracking import Tracker, TrackingSection
from bertillery.run.trainer import Fit, Trainer
from bertillery.run.views import Listing
from tests.run.test_checkpoint import flip_a_bit

SCORES = [0.1, 0.5, 0.4, 0.5, 0.3, 0.2]


class Examples:
    num_blocks = 1

    def examples(self, epoch: int, block: int) -> np.ndarray:
        rows = np.zeros(8, np.dtype([("length", np.int64), ("key", np.uint64)]))
        rows["length"] = 2
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        ids = np.zeros(2 * len(rows), np.int64)
        return pack(ids, ids, rows["length"], targets={}, counts={"examples": len(rows)})


class Weight(Objective):
    """Its weight falls a little with every step."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        return {
            "weight": Term(
                self.weight.sum() * batch.input.num_sequences, "examples", title="mean weight", baseline="1"
            ),
            "recorded": Term(self.weight.detach().sum(), "examples", weight=0.0, direction="higher"),
        }

    def exported(self) -> Any:
        raise NotImplementedError

    def flops(self, batch: PackedBatch) -> float:
        return 1.0


class Scripted(HeldOut):
    """Evaluations come from a list."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__(Examples(), num_examples=None, micro_batch_tokens=64)
        self.scores = iter(scores)

    def evaluate(self, accelerator: Any, objective: nn.Module) -> dict[str, float]:
        return {"loss": 0.0, "score": next(self.scores), **super().evaluate(accelerator, objective)}

    def score(self, values: dict[str, float]) -> float:
        return values["score"]


def trainer_of(folder: Path, scores: list[float], **section: Any) -> Trainer:
    accelerator = start_accelerator(RunSection(threads=1, precision="fp32"))
    settings = {"steps": 12, "phases": [{"batch_size": 4}], "evaluate_every": 2, "save_every": 2, "log_every": 4}
    train_section = validate(TrainSection, {**settings, **section})
    objective = Weight()
    optim = OptimSection(learning_rate=1e-2)
    return Trainer(
        accelerator,
        objective,
        build_optimizer(optim, objective),
        run=RunDirectory.open(folder, "a: 1\n"),
        config="a: 1\n",
        section=train_section,
        optim=optim,
        schedule=Schedule.of(train_section, lambda: 2.0),
        seed=1,
        sources=[Examples()],
        held_out=Scripted(scores),
    )


def train(folder: Path, scores: list[float], **section: Any) -> tuple[Fit, Trainer, Tracker]:
    trainer = trainer_of(folder, scores, **section)
    resumed = trainer.resume()
    tracking = TrackingSection(wandb="off")
    tracker = Tracker(tracking, folder, listing=Listing("a"), config={}, is_main=True, resume_step=resumed or None)
    ended = trainer.run(tracker)
    tracker.close()
    return ended, trainer, tracker


@pytest.mark.parametrize(("patience", "last"), [(1, 6), (2, 8), (3, 10), (None, 12)])
def test_training_ends_after_so_many_evaluations_that_were_not_the_best(
    tmp_path: Path, patience: int | None, last: int
) -> None:
    ended, trainer, _ = train(tmp_path / "a", SCORES, patience=patience)
    assert (ended.step, trainer.step, ended.stopped_by) == (last, last, None)
    assert trainer.best == 4, "the earliest of equals"


def test_the_best_weights_leave_the_run(tmp_path: Path) -> None:
    ended, trainer, _ = train(tmp_path / "a", SCORES, export="best")
    last, other, _ = train(tmp_path / "b", SCORES)
    assert (ended.step, ended.held_out["score"]) == (4, 0.5)
    assert (last.step, last.held_out["score"]) == (12, 0.2)
    assert trainer.objective.weight.item() == pytest.approx(ended.held_out["weight"])
    assert other.objective.weight.item() == pytest.approx(last.held_out["weight"])
    assert ended.held_out["weight"] > last.held_out["weight"]


def test_a_resumed_run_remembers_its_evaluations(tmp_path: Path) -> None:
    """Its patience goes on where it was, and a run that had lost it does not train on."""
    train(tmp_path / "a", SCORES, patience=2)
    ended, trainer, _ = train(tmp_path / "a", [9.9], patience=2, export="best")
    assert sorted(trainer.evaluations) == [2, 4, 6, 8]
    assert (ended.step, trainer.best) == (4, 4)


def test_how_terms_are_shown_is_known_where_nothing_is_left_to_evaluate(tmp_path: Path) -> None:
    """As for a run that was killed while it exported."""
    _, trainer, _ = train(tmp_path, SCORES)
    _, again, _ = train(tmp_path, [])
    for each in (trainer, again):
        assert each.held_out.shown == {"weight": Shown("mean weight", "lower", "1")}


def test_checkpoints_that_a_kill_kept_from_being_deleted_are_deleted_by_the_next_start(tmp_path: Path) -> None:
    """Also where no step is left to be trained, after which a checkpoint would be saved and older ones deleted."""
    train(tmp_path / "a", SCORES, keep=3)
    kept = sorted(path.name for path in (tmp_path / "a/checkpoints").iterdir())
    train(tmp_path / "a", [], keep=1)
    assert len(kept) > 2
    assert {path.name for path in (tmp_path / "a/checkpoints").iterdir()} == {"step-0000000004", "step-0000000012"}


@pytest.mark.parametrize("record", [11, None])
def test_a_half_written_record_keeps_no_run_from_being_resumed(tmp_path: Path, record: int | None) -> None:
    """The disk was full, or the machine went down, while a row was written; or the whole file was lost. What was
    evaluated is in the checkpoint."""
    train(tmp_path / "a", SCORES)
    shutil.rmtree(tmp_path / "a/checkpoints/step-0000000012")
    file = tmp_path / "a" / "metrics.jsonl"
    text = file.read_text()
    file.unlink() if record is None else file.write_text(text[:-record])
    ended, trainer, _ = train(tmp_path / "a", [0.7, 0.7])
    assert sorted(trainer.evaluations) == [2, 4, 6, 8, 10, 12]
    assert ended.step == 12
    if record is not None:
        steps, expected = (
            [json.loads(line)["step"] for line in each.splitlines()] for each in (file.read_text(), text)
        )
        assert steps == expected


def test_saving_and_evaluating_are_not_training_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 8 tokens takes a second by this clock, wherever what takes longer falls between two readings."""
    now = [0.0]
    monkeypatch.setattr(meter, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def takes(seconds: float, owner: Any, name: str) -> None:
        done = getattr(owner, name)

        def late(*given: Any, **named: Any) -> Any:
            now[0] += seconds
            return done(*given, **named)

        monkeypatch.setattr(owner, name, late)

    takes(1, Weight, "forward")
    takes(100, fit, "save_checkpoint")
    takes(1000, Scripted, "evaluate")
    schedule = {"log_every": 5, "save_every": 4, "evaluate_every": 3}
    ended, *_ = train(tmp_path / "a", SCORES, **schedule)
    shutil.rmtree(tmp_path / "a/checkpoints/step-0000000012")
    file = tmp_path / "a/metrics.jsonl"
    file.write_text("")
    resumed, *_ = train(tmp_path / "a", SCORES, **schedule)
    speeds = [row.get("tokens_per_second") for row in map(json.loads, file.read_text().splitlines())]
    assert speeds == [8, 8, None]
    assert ended.tokens_per_second == resumed.tokens_per_second == 8


def best_of(folder: Path) -> Path:
    """The checkpoint of the best evaluation of a training that was done with all steps."""
    train(folder, SCORES, export="best")
    return folder / "checkpoints/step-0000000004"


@pytest.mark.parametrize("damage", ["flipped", "deleted"])
def test_a_best_checkpoint_that_is_not_whole_is_not_exported(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left is taken instead, and that is said."""
    best = best_of(tmp_path / "a")
    flip_a_bit(best) if damage == "flipped" else shutil.rmtree(best)
    ended, trainer, _ = train(tmp_path / "a", [], export="best")
    assert (ended.step, ended.held_out["score"]) == (10, 0.3)
    assert trainer.objective.weight.item() == pytest.approx(ended.held_out["weight"])
    said = "another checksum" if damage == "flipped" else "does not exist"
    assert "the best evaluation was that of step 4, but its checkpoint" in ended.note
    assert said in ended.note
    assert "WARNING" in capsys.readouterr().out


def test_which_evaluation_was_best_is_recorded_with_the_checkpoint(tmp_path: Path) -> None:
    """The log may lose the row."""
    best_of(tmp_path / "a")
    file = tmp_path / "a/metrics.jsonl"
    rows = file.read_text().splitlines()
    file.write_text("\n".join(row[:9] if 'score": 0.5' in row else row for row in rows) + "\n")
    ended, trainer, _ = train(tmp_path / "a", [], export="best")
    assert (ended.step, ended.held_out["score"]) == (4, 0.5)
    assert trainer.objective.weight.item() == pytest.approx(ended.held_out["weight"])
    state = json.loads((tmp_path / "a/checkpoints/step-0000000012/state.json").read_text())
    assert state["best"] == {"step": 4, "score": 0.5}


def trained_rows(folder: Path) -> list[dict[str, float]]:
    """What was recorded of the training, but for times and speeds."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    named = [{n: v for n, v in row.items() if n in ("step", "learning_rate") or "/" in n} for row in lines]
    return [{n: v for n, v in row.items() if n != "held_out/score"} for row in named]


def test_means_of_an_interval_do_not_know_where_a_run_was_resumed(tmp_path: Path) -> None:
    """Killed after a checkpoint within an interval, or stopped by a signal: the same rows, bit for bit."""
    schedule = {"log_every": 5, "save_every": 4, "evaluate_every": 12}
    train(tmp_path / "whole", SCORES, **schedule)
    for step in (4, 8):
        shutil.copytree(tmp_path / "whole", tmp_path / f"{step}")
        for path in (tmp_path / f"{step}/checkpoints").iterdir():
            if int(path.name.removeprefix("step-")) > step:
                shutil.rmtree(path)
        train(tmp_path / f"{step}", SCORES, **schedule)
        assert trained_rows(tmp_path / f"{step}") == trained_rows(tmp_path / "whole")


def test_a_signal_leaves_no_trace_in_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = {"log_every": 5, "save_every": 12, "evaluate_every": 12}
    train(tmp_path / "whole", SCORES, **schedule)
    forward, calls = Weight.forward, []

    def stopping(self: Weight, batch: PackedBatch) -> dict[str, Term]:
        calls.append(1)
        if len(calls) == 6:
            signal.raise_signal(signal.SIGTERM)
        return forward(self, batch)

    monkeypatch.setattr(Weight, "forward", stopping)
    stopped, *_ = train(tmp_path / "a", SCORES, **schedule)
    assert stopped.stopped_by == "SIGTERM"
    assert 5 < stopped.step < 10
    train(tmp_path / "a", SCORES, **schedule)
    assert trained_rows(tmp_path / "a") == trained_rows(tmp_path / "whole")


@pytest.mark.parametrize("steps", [1, 6])
def test_a_training_that_diverges_says_which_checkpoint_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    forward, calls = Weight.forward, []

    def diverging(self: Weight, batch: PackedBatch) -> dict[str, Term]:
        calls.append(1)
        found = forward(self, batch)["weight"]
        return {"weight": replace(found, total=found.total * (math.nan if len(calls) == steps else 1))}

    monkeypatch.setattr(Weight, "forward", diverging)
    with pytest.raises(DivergedError) as caught:
        train(tmp_path / "a", SCORES, save_every=4, evaluate_every=12)
    there = "There is no checkpoint yet" if steps == 1 else "The newest complete checkpoint is "
    assert there in str(caught.value)
    assert ("step-0000000004" in str(caught.value)) == (steps == 6)


def test_what_was_recorded_is_on_disk_before_a_checkpoint_that_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a crash of the machine keeps the checkpoint and loses rows that nothing writes again."""
    file, synced, save, fsync = tmp_path / "a/metrics.jsonl", [0], fit.save_checkpoint, os.fsync

    def syncing(descriptor: int) -> None:
        fsync(descriptor)
        if Path(f"/proc/self/fd/{descriptor}").resolve() == file:
            synced.append(os.fstat(descriptor).st_size)

    def saving(*given: Any, **named: Any) -> Path:
        assert synced[-1] == file.stat().st_size
        return save(*given, **named)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(fit, "save_checkpoint", saving)
    train(tmp_path / "a", SCORES)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_sums_of_an_interval_go_on_with_any_number_of_processes(ranks: int) -> None:
    """Three had added them up: each rank gets its own again, or they are shared out; none is lost."""
    accelerator: Any = SimpleNamespace(reduce=lambda values, _: values, device=torch.device("cpu"))
    values = [[0.1, 0.7], [0.3], [1.1, 1.3, 1.7]]

    def added(earlier: list[Any], numbers: list[float]) -> Sums:
        sums = Sums(earlier)
        for value in numbers:
            sums.add({"loss": Term(torch.tensor(value), "examples")}, {"examples": 1})
        return sums

    states = [json.loads(json.dumps(added([], numbers).state())) for numbers in values]
    later = [added(states[rank::ranks], [0.5]) for rank in range(ranks)]
    joined = added([each.state() for each in later], [0.0])
    total = sum(map(sum, values)) + 0.5 * ranks
    assert joined.means(accelerator)["loss"] == pytest.approx(total / (6 + ranks + 1), rel=1e-6)

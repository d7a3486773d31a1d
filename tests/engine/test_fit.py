"""Which evaluation ends a training, and which weights leave it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engine import fit, meter
from engine.batch import PackedBatch, pack
from engine.config import validate
from engine.evaluate import HeldOut
from engine.fit import Fit, Trainer
from engine.objective import Objective, Term
from engine.optim import OptimSection, build_optimizer
from engine.rhythm import Rhythm, TrainSection
from engine.run import RunDirectory, RunSection, start_accelerator
from engine.tracking import Tracker, TrackingSection

SCORES = [0.1, 0.5, 0.4, 0.5, 0.3, 0.2]


class Examples:
    num_blocks = 1

    def plan(self, epoch: int, block: int) -> np.ndarray:
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
        return {"weight": Term(self.weight.sum() * batch.num_sequences, "examples")}

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
        rhythm=Rhythm.of(train_section, lambda: 2.0),
        seed=1,
        sources=[Examples()],
        held_out=Scripted(scores),
    )


def train(folder: Path, scores: list[float], **section: Any) -> tuple[Fit, Trainer, Tracker]:
    trainer = trainer_of(folder, scores, **section)
    resumed = trainer.resume()
    tracking = TrackingSection(wandb="off")
    tracker = Tracker(tracking, folder, name="a", config={}, is_main=True, resume_step=resumed or None)
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


@pytest.mark.parametrize(("record", "known"), [(11, [2, 4, 6, 8, 10]), (None, [10])])
def test_a_half_written_record_keeps_no_run_from_being_resumed(
    tmp_path: Path, record: int | None, known: list[int]
) -> None:
    """The disk was full, or the machine went down, while a row was written; or the whole file was lost."""
    train(tmp_path / "a", SCORES)
    shutil.rmtree(tmp_path / "a/checkpoints/step-0000000012")
    file = tmp_path / "a" / "metrics.jsonl"
    text = file.read_text()
    file.unlink() if record is None else file.write_text(text[:-record])
    ended, trainer, _ = train(tmp_path / "a", [0.7, 0.7])
    assert sorted(trainer.evaluations) == [*known, 12]
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
    rhythm = {"log_every": 5, "save_every": 4, "evaluate_every": 3}
    ended, *_ = train(tmp_path / "a", SCORES, **rhythm)
    shutil.rmtree(tmp_path / "a/checkpoints/step-0000000012")
    file = tmp_path / "a/metrics.jsonl"
    file.write_text("")  # so that the resumed run evaluates before its first step
    resumed, *_ = train(tmp_path / "a", SCORES, **rhythm)
    speeds = [row.get("tokens_per_second") for row in map(json.loads, file.read_text().splitlines())]
    assert speeds == [None, 8, 8, None]
    assert ended.tokens_per_second == resumed.tokens_per_second == 8

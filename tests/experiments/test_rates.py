"""The range test: the rate grows by a factor, loop and data are the training's, and what it suggests is right."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import experiments.rates
from bertillery.config.section import ConfigError, validate
from bertillery.engine.batch import PackedBatch, pack
from bertillery.engine.evaluate import HeldOut
from bertillery.engine.objective import Objective, Term
from bertillery.engine.optim import OptimSection
from bertillery.engine.rng import uniform
from bertillery.engine.schedule import Schedule, TrainSection
from bertillery.run.device import RunSection, start_accelerator
from bertillery.run.directory import RunDirectory
from bertillery.run.trainer import Trainer
from experiments.rates import RangeSection, RangeTest, main, range_test, smooth, suggestions, write_range
from finetune.__main__ import main as finetune
from tests.corpora import write_text as write_corpus
from tests.finetune.tasks import write_encoder, write_task

CURVATURE = 50.0


class Points:
    """Targets around 0, of a spread of 0.1, different in each example and epoch."""

    num_blocks = 1

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.broken_from: float = np.inf
        """Examples taken before one is broken."""

    def examples(self, epoch: int, block: int) -> np.ndarray:
        rows = np.zeros(64, np.dtype([("length", np.int64), ("key", np.uint64), ("value", np.float64)]))
        rows["length"], rows["key"] = 2, epoch * 64 + np.arange(64)
        rows["value"] = 0.35 * (uniform(7, rows["key"]) - 0.5)
        return rows

    def collate(self, rows: np.ndarray) -> PackedBatch:
        self.taken += rows["key"].tolist()
        ids = np.zeros(2 * len(rows), np.int64)
        targets = {"value": rows["value"].astype(np.float32) * (1 if len(self.taken) <= self.broken_from else np.nan)}
        return pack(ids, ids, rows["length"], targets=targets, counts={"examples": len(rows)})


class Quadratic(Objective):
    """Half the curvature times the squared distance of a weight, which starts at 1, from the targets.

    Plain gradient descent at a rate r multiplies the distance by 1 - r * curvature: it diverges above 2 / curvature.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch: PackedBatch) -> dict[str, Term]:
        distance = self.weight - batch.targets["value"]
        return {"distance": Term(0.5 * CURVATURE * distance.square().sum(), "examples")}

    def exported(self) -> Any:
        raise NotImplementedError

    def flops(self, batch: PackedBatch) -> float:
        return 1.0


def trainer(folder: Path, source: Points, steps: int = 10) -> Trainer:
    accelerator = start_accelerator(RunSection(threads=1, precision="fp32", device="cpu"))
    section = validate(TrainSection, {"steps": steps, "phases": [{"batch_size": 8}]})
    objective = Quadratic()
    optimizer = torch.optim.SGD([{"params": [objective.weight], "rate_share": 1.0}], lr=0.0)
    return Trainer(
        accelerator,
        objective,
        optimizer,
        run=RunDirectory(folder),
        config="",
        section=section,
        optim=OptimSection(max_gradient_norm=1e9),
        schedule=Schedule.of(section, lambda: Fraction(8)),
        seed=3,
        sources=[source],
        held_out=HeldOut(Points(), num_examples=8),
    )


@pytest.mark.parametrize("steps", [100, 250])
def test_a_quadratic_whose_best_rates_are_known(tmp_path: Path, steps: int) -> None:
    """The distance after a rate r is exp(-curvature * sum of rates), and that sum is r / log(growth) to the digit that
    matters; the squared distance falls most for a growth of r where twice the exponent is 1. It rises before a rate of
    2 / curvature, as the noise of the batches is amplified by then.
    """
    section = RangeSection(lowest=1e-6, highest=1.0, steps=steps)
    test = range_test(trainer(tmp_path, Points()), section)
    growth = np.log(section.rate(1) / section.rate(0))
    assert test.steepest is not None
    # The average is about ten steps late, and a rate shows in the loss of the step after it.
    late = np.exp(10 * growth)
    assert 0.5 < test.rates[test.steepest] / (growth / (2 * CURVATURE)) < late
    assert 0.2 < test.rates[test.lowest] / (2 / CURVATURE) < np.exp(2 * growth)
    assert test.ended == "the loss was above 4 times its minimum"
    assert len(test.rates) < steps
    assert not [*tmp_path.iterdir()], "no checkpoint, no export"


def test_rates_grow_by_one_factor() -> None:
    section = RangeSection(lowest=1e-5, highest=1e-2, steps=31)
    rates = np.array([section.rate(step) for step in range(31)])
    assert rates[[0, 10, 20, 30]] == pytest.approx([1e-5, 1e-4, 1e-3, 1e-2])
    np.testing.assert_allclose(rates[1:] / rates[:-1], 10**0.1)


def test_it_trains_on_what_the_training_would(tmp_path: Path) -> None:
    """At the rates of the training it is the training, and a short one's data goes on in the same order."""
    one, other = Points(), Points()
    section = RangeSection(lowest=1e-3, highest=2e-3, steps=20)
    test = range_test(trainer(tmp_path, one, steps=3), section)
    long = trainer(tmp_path, other, steps=20)
    steps = [*long.steps(section.rate, lambda: False)]
    assert one.taken == other.taken
    assert len(one.taken) == 160
    assert test.losses.tolist() == pytest.approx([info.terms[0][0]["distance"].total.item() / 8 for info in steps])
    assert test.rates.tolist() == [info.learning_rate for info in steps]
    assert test.ended == "all steps were done"


def test_the_average_is_corrected_for_its_start() -> None:
    np.testing.assert_allclose(smooth([3.0] * 50), 3.0)
    assert smooth([1.0, 2.0])[1] == pytest.approx((0.9 * 0.1 * 1 + 0.1 * 2) / (1 - 0.9**2))


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    source = Points()
    source.broken_from = 96
    test = range_test(trainer(tmp_path, source), RangeSection(lowest=1e-6, highest=1e-5, steps=20))
    assert test.ended == "loss or gradient were not finite"
    assert len(test.losses) == 12
    assert np.isfinite(test.losses).all()


def test_no_rate_is_suggested_where_nothing_was_learned(tmp_path: Path) -> None:
    """Noise alone, which has a steepest place too, is not taken for a fall; and an unfinished fall is called one."""
    noise = np.random.default_rng(0).normal(1, 0.1, 100)
    rates = np.geomspace(1e-7, 1e-1, 100)
    found = [RangeTest(rates, np.random.default_rng(seed).normal(1, 0.1, 100), "") for seed in range(50)]
    assert sum(test.steepest is not None for test in found) <= 8
    assert suggestions(RangeTest(rates, noise, "")).startswith("none: the loss did not fall")
    rising = RangeTest(rates, noise + np.linspace(0, 5, 100), "")
    assert rising.steepest is None
    falling = RangeTest(rates, noise + np.linspace(5, 0, 100), "")
    assert "it fell to the end" in suggestions(falling)
    short = range_test(trainer(tmp_path, Points()), RangeSection(steps=20))
    for test in (found[0], falling, short):
        write_range(test, tmp_path, "title")
    rows = [json.loads(line) for line in (tmp_path / "rates.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [*range(len(rows))]
    assert set(rows[0]) == {"step", "learning_rate", "loss", "smoothed"}
    assert (tmp_path / "rate_range.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_fails_costs_no_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("nothing to see")

    monkeypatch.setattr(experiments.rates, "save", fail)
    rates = np.geomspace(1e-7, 1e-1, 60)
    write_range(RangeTest(rates, np.cos(np.log(rates)), ""), tmp_path, "title")
    assert "rate_range.png failed: RuntimeError: nothing to see" in caplog.text
    assert len((tmp_path / "rates.jsonl").read_text().splitlines()) == 60


@pytest.mark.parametrize("given", [{"lowest": 1.0}, {"lowest": 0.0}, {"steps": 3}, {"highest": "high"}])
def test_a_range_that_is_none_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        validate(RangeSection, given)


def test_of_a_fine_tuning_it_leaves_numbers_and_a_picture_and_starts_as_the_training_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, encoder = write_task(tmp_path / "toy"), write_encoder(tmp_path / "encoder")
    places = [str(task), f"model.from={encoder}", f"run.dir={tmp_path}/runs", "run.name=a", "run.threads=1"]
    given = [*places, "run.device=cpu", "run.precision=fp32", "train.steps=2", "train.micro_batch_tokens=auto"]
    for _ in range(2):  # a second one replaces the first
        assert main([*given, "lowest=1e-5", "highest=10", "steps=20"]) == 0
    folder = tmp_path / "runs/finetune/a-rate-range"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "lock", "rates.jsonl", "rate_range.png"}
    rows = [json.loads(line) for line in (folder / "rates.jsonl").read_text().splitlines()]
    assert rows[0]["learning_rate"] == 1e-5
    assert str(folder / "rate_range.png") in capsys.readouterr().out
    assert finetune(given) == 0, "the training itself is not in the way"
    lines = (tmp_path / "runs/finetune/a/metrics.jsonl").read_text().splitlines()
    assert rows[0]["loss"] == next(row["train/loss"] for row in map(json.loads, lines) if "train/loss" in row)


def test_a_range_that_is_none_is_said_before_anything_is_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lowest=1", "highest=0.1"]) == 2
    assert "lowest=1 is not below highest=0.1" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "Learning rate of the last step." in capsys.readouterr().out


TINY = """
model: {num_hidden_layers: 1, hidden_size: 32, num_attention_heads: 2, max_position_embeddings: 64}
tokenizer: {vocab_size: 200}
data: {holdout: 0.2}
objective: {type: mlm}
train: {steps: 12, phases: [{batch_size: 8, sequence_length: 32}]}
run: {threads: 1, device: cpu, precision: fp32}
"""


def test_of_a_pretraining_it_leaves_numbers_and_a_picture(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY)
    write_corpus(tmp_path / "text.txt")
    places = [f"run.dir={tmp_path}/runs", f"run.data_dir={tmp_path}/data", f"data.path={tmp_path}/text.txt"]
    assert main([str(tmp_path / "tiny.yaml"), *places, "lowest=1e-4", "highest=1", "steps=30"]) == 0
    folder = tmp_path / "runs/pretrain/tiny-rate-range"
    assert {path.name for path in folder.iterdir()} == {"config.yaml", "lock", "rates.jsonl", "rate_range.png"}
    rows = [json.loads(line) for line in (folder / "rates.jsonl").read_text().splitlines()]
    assert min(row["smoothed"] for row in rows) < rows[0]["smoothed"] - 0.1

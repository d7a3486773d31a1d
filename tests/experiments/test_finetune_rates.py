"""The range test as a command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.finetune_rates import main
from finetune.__main__ import main as finetune
from tests.finetune.tasks import write_encoder, write_task


def test_it_leaves_numbers_and_a_picture_and_starts_as_the_training_does(
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

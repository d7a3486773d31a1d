"""One metric of several runs in a picture."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.curves import _short, curve, main


def write_run(folder: Path, values: list[float]) -> Path:
    folder.mkdir(parents=True)
    rows = [{"step": step, "time": 0.0, "train/loss": value} for step, value in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return folder


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / name / "seed-1", [5.0, last]) for name, last in (("post", 4.5), ("pre", 3.25))]
    assert curve(runs[1], "train/loss") == [(1, 5.0), (2, 3.25)]
    given = f"runs=[{runs[0]},{runs[1]}]"
    assert main([given, f"picture={tmp_path}/out.png"]) == 0
    out = capsys.readouterr().out
    assert "4.500" in out
    assert "3.250" in out
    assert (tmp_path / "out.png").stat().st_size > 1000
    assert main([given, "metric=train/mlm"]) == 2
    assert "has train/loss" in capsys.readouterr().err
    assert main([f"runs=[{tmp_path}]"]) == 2
    assert "no metrics.jsonl" in capsys.readouterr().err


def test_names_are_what_differs() -> None:
    assert [*_short({"a/b/post/seed-1": [], "a/b/pre/seed-1": []})] == ["post", "pre"]
    assert [*_short({"a/b/x": [], "a/y": []})] == ["b/x", "y"]
    assert [*_short({"a/b": []})] == ["b"]

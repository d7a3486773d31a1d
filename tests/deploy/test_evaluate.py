"""A model that is evaluated without training has the scores of the end of its training."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deploy.evaluate import main
from finetune.__main__ import main as finetune
from tests.deploy.conftest import rows_of
from tests.deploy.test_predict import SHORT
from tests.finetune.tasks import write_encoder
from tests.finetune.test_task_types import write_task


def evaluate(model: Path, *given: str) -> int:
    return main([f"model={model}", "run.device=cpu", "run.precision=fp32", *given])


def test_the_scores_are_those_of_the_end_of_training(
    finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Beside the same baselines; labelled test splits are scored, too."""
    assert evaluate(finetuned / "export", f"output={tmp_path / 'out'}") == 0
    said = capsys.readouterr().out
    trained = json.loads((finetuned / "finished.json").read_text())
    found = json.loads((tmp_path / "out/results.json").read_text())
    assert found["scores"]["validation"] == pytest.approx(trained["scores"]["validation"])
    assert found["baselines"]["validation"] == trained["baselines"]["validation"]
    assert found["classes"] == trained["classes"]
    assert [*found["scores"]] == ["validation", "test"]
    assert trained["classes"] in said
    for line in trained["table"].splitlines()[:4]:
        assert line.split("|")[2:] in [each.split("|")[2:] for each in said.splitlines()]
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"results.json", "table.md", "hardest.tsv", "confusion.png", "predictions"}


def test_a_labelled_file_is_enough(finetuned: Path, tmp_path: Path) -> None:
    """For an export away from its run, whose metrics may be others."""
    shutil.copytree(finetuned / "export", tmp_path / "model")
    given = finetuned.parents[2] / "task/validation.jsonl"
    more = [f"data=[{given}]", f"output={tmp_path}/out", "task.metrics=[accuracy, macro_recall]"]
    assert evaluate(tmp_path / "model", *more) == 0
    found = json.loads((tmp_path / "out/results.json").read_text())
    trained = json.loads((finetuned / "finished.json").read_text())
    assert found["scores"]["data"]["accuracy"] == pytest.approx(trained["scores"]["validation"]["accuracy"])
    assert [*found["scores"]["data"]] == ["accuracy", "macro_recall"]
    assert found["baselines"] == {"data": {}}


def test_a_task_beside_its_yaml_is_found(
    finetuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Wherever the command is started; where a root is given, it decides."""
    (tmp_path / "mine").mkdir()
    rows = rows_of(finetuned.parents[2] / "task/validation.jsonl")
    (tmp_path / "mine/rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "t", "type": "classification", "text": ["first", "second"], "labels": ["red", "green", "blue"]}
    files = {"metrics": "accuracy", "files": {"validation": "rows.jsonl"}}
    (tmp_path / "mine/t.yaml").write_text(json.dumps({"task": {**task, **files}}))
    monkeypatch.chdir(tmp_path)
    assert evaluate(finetuned / "export", "mine/t.yaml", "output=out") == 0
    assert evaluate(finetuned / "export", "mine/t.yaml", "output=out", "task.root=elsewhere") == 2
    assert "elsewhere/rows.jsonl: no such file" in capsys.readouterr().err


def test_a_threshold_of_the_training_is_kept(tmp_path: Path) -> None:
    """And not chosen again on what is evaluated."""
    arguments = write_task(tmp_path, "spans", write_encoder(tmp_path / "tiny"))
    assert finetune([*arguments, *SHORT]) == 0
    export = tmp_path / "runs/finetune/all/export"
    shutil.move(export, tmp_path / "model")
    text = (tmp_path / "model/task.yaml").read_text()
    (tmp_path / "model/task.yaml").write_text(text.partition("chosen:")[0] + "chosen: {null_threshold: -1000.0}\n")
    given = [f"data=[{tmp_path}/all.json]", "task.metrics=[exact_match]"]
    assert evaluate(tmp_path / "model", f"output={tmp_path}/out", *given) == 0
    answers = json.loads((tmp_path / "out/predictions/data.json").read_text())
    assert set(answers.values()) == {""}, "no answer is as sure as that"

"""A run is exported again from its checkpoints, bit for bit, and stays as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from deploy.export import main


def test_the_last_checkpoint_is_the_export(finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in finetuned.rglob("*") if file.is_file()}
    assert main([f"model={finetuned}", f"output={tmp_path / 'out'}"]) == 0
    for name in ("model.safetensors", "config.json", "task.yaml", "tokenizer.json"):
        assert (tmp_path / "out/export" / name).read_bytes() == (finetuned / "export" / name).read_bytes()
    predicted = (tmp_path / "out/predictions/validation.tsv").read_text()
    assert predicted == (finetuned / "predictions/validation.tsv").read_text()
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["steps"] == 8
    assert results["scores"] == json.loads((finetuned / "finished.json").read_text())["scores"]
    assert {file: file.read_bytes() for file in finetuned.rglob("*") if file.is_file()} == before
    assert str(tmp_path / "out/export") in capsys.readouterr().out


def test_a_step_has_the_weights_of_its_checkpoint(finetuned: Path, tmp_path: Path) -> None:
    assert main([f"model={finetuned}", f"output={tmp_path / 'out'}", "checkpoint=4"]) == 0
    kept = load_file(finetuned / "checkpoints/step-0000000004/model.safetensors")
    found = load_file(tmp_path / "out/export/model.safetensors")
    assert all((kept[f"model.{name}"] == tensor).all() for name, tensor in found.items())
    assert json.loads((tmp_path / "out/results.json").read_text())["steps"] == 4


def test_what_cannot_be_exported(finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"model={finetuned}", f"output={tmp_path / 'out'}", "checkpoint=5"]) == 2
    assert "there are those of steps 4, 8" in capsys.readouterr().err
    assert main([f"model={finetuned / 'export'}"]) == 2
    assert f"did you mean {finetuned}?" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]

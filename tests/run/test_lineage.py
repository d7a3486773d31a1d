from __future__ import annotations

from pathlib import Path

import pytest

from bertillery.run.inputs import Fingerprint, model_inputs
from bertillery.run.lineage import model_artifact, model_name, used_artifacts

FOUND = Fingerprint("ab" * 32, "something")


def test_a_model_is_one_artifact_wherever_it_is_read_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export = tmp_path / "runs/pretrain/small/export"
    (export / "generator").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", "README.md", "generator/config.json"):
        (export / name).write_text(name)
    monkeypatch.chdir(tmp_path)
    fingerprint = model_inputs(x=str(export))["x"]
    made = model_artifact(str(export), fingerprint, "pretrained")
    read = model_artifact("runs/pretrain/small/export", fingerprint)
    assert (made.name, made.type, made.references) == (read.name, read.type, read.references)
    assert sorted(made.references) == ["config.json", "generator/config.json", "model.safetensors"], "no card"
    assert all(path.is_absolute() for path in made.references.values())


def test_a_name_suits_a_tracker() -> None:
    assert model_artifact("google/electra small:x", FOUND).name == "electra-small-x"
    assert model_artifact("runs/finetune/sst2/bert/seed-1/export", FOUND).name == "bert-sst2"
    assert len(model_artifact("a" * 200, FOUND).name) == 120
    assert model_artifact("///", FOUND).name == "model"
    assert model_name("runs/pretrain/bert_mini/export") == "bert_mini"


def test_inputs_become_artifacts_of_their_kind(tmp_path: Path) -> None:
    for name in ("train/ids.bin", "valid/ids.bin", "tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    inputs = {
        "corpus files": Fingerprint("cd" * 32, "2 files", exact=False),
        "corpus": FOUND,
        "tokenizer": FOUND,
        "teacher": FOUND,
        "train rows": FOUND,
    }
    folders = {"corpus": tmp_path, "tokenizer": tmp_path}
    found = {
        each.type: each for each in used_artifacts(inputs, models={"teacher": "big"}, folders=folders, about="mrpc")
    }
    assert {kind: each.name for kind, each in found.items()} == {
        "corpus": "corpus-abababab", "tokenizer": "tokenizer-abababab", "model": "big", "rows": "mrpc-train-rows",
    }  # fmt: skip
    assert sorted(found["corpus"].references) == ["train/ids.bin", "valid/ids.bin"]
    assert not found["corpus"].checksums
    assert sorted(found["tokenizer"].files) == ["tokenizer.json", "tokenizer_config.json"]
    brought = used_artifacts(inputs, models={"teacher": "big"}, folders={}, about="mrpc")
    assert "tokenizer" not in {each.type for each in brought}, "it comes with the teacher"

from pathlib import Path

import pytest

from bertillery.run import inputs
from bertillery.run.inputs import model_inputs
from bertillery.system.files import sha256


def test_a_model_is_read_again_only_when_it_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    monkeypatch.setattr(inputs, "sha256", lambda file: read.append(file.name) or sha256(file))
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_text(name)
    first = model_inputs(teacher=str(tmp_path))
    assert model_inputs(teacher=str(tmp_path)) == first
    assert sorted(read) == ["config.json", "model.safetensors"]
    (tmp_path / "model.safetensors").write_text("other tensors")
    assert model_inputs(teacher=str(tmp_path)) != first
    assert sorted(read) == ["config.json", "model.safetensors", "model.safetensors"]

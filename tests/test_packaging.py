"""What is installed is whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from transformers import BertConfig

from bertillery.config.section import ConfigError
from experiments.space import read_space
from finetune import recipe as recipes

ROOT = Path(__file__).resolve().parents[1]


def test_a_wheel_has_every_configuration(tmp_path: Path) -> None:
    """Where the program looks for it once the wheel is unpacked."""
    source = tmp_path / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("bertillery", "pretrain", "finetune", "distill", "experiments", "deploy", "pages", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_wheel({str(tmp_path)!r})"]
    subprocess.run(build, cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("configs/")}
        templates = {name for name in archive.namelist() if name.startswith("pages/templates/")}
        archive.extractall(tmp_path / "installed")
    assert packed == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("configs/**/*.yaml")}
    assert templates == {path.relative_to(ROOT).as_posix() for path in ROOT.glob("pages/templates/*")}
    code = "from bertillery.config.section import CONFIGS; print(CONFIGS)"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "installed")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == str(tmp_path / "installed/configs")


def test_a_missing_folder_of_configurations_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BertConfig(hidden_size=256, num_attention_heads=4).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(recipes, "RECIPES", tmp_path / "recipes")
    for name in ("auto", "bert"):
        with pytest.raises(ConfigError, match=f"{tmp_path}/recipes: no such folder"):
            recipes.choose_recipe(str(tmp_path / "model"), name)
    monkeypatch.setattr("experiments.space.SPACES", tmp_path / "spaces")
    with pytest.raises(ConfigError, match=f"{tmp_path}/spaces: no such folder"):
        read_space("default")

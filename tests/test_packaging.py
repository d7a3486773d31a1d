"""What is installed is whole."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import BertConfig

from bertillery.config.section import ConfigError
from experiments.space import read_space
from finetune import recipe as recipes
from tests.corpora import write_text

ROOT = Path(__file__).resolve().parents[1]


PACKAGES = [
    "bertillery",
    "knowledge",
    "pretrain",
    "translation",
    "finetune",
    "prompting",
    "distill",
    "experiments",
    "deploy",
    "pages",
]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an installed wheel, built and installed without a network, from what the image copies."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    copied = re.findall(r"^COPY (.+) \S+$", (ROOT / "clusters/Dockerfile").read_text(), flags=re.M)
    for name in " ".join(copied).split():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    quietly = ["--quiet", "--no-index", "--no-deps"]
    build = [*pip, "wheel", *quietly, "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", *quietly, "--target", str(folder / "installed"), str(wheel)], check=True)
    return folder / "installed"


def bertillery(installed: Path, place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The program that the wheel installs, run in another folder."""
    place.mkdir(exist_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(installed), "NO_COLOR": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(installed / "bin/bertillery"), *arguments]
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)


def test_a_wheel_has_every_configuration_and_its_types(installed: Path) -> None:
    packed = {path.relative_to(installed) for path in installed.glob("configs/**/*.yaml")}
    assert packed == {path.relative_to(ROOT) for path in ROOT.glob("configs/**/*.yaml")}
    templates = {path.relative_to(installed) for path in installed.glob("pages/templates/*.*")}
    assert templates == {path.relative_to(ROOT) for path in ROOT.glob("pages/templates/*.*")}
    assert all((installed / package / "py.typed").is_file() for package in PACKAGES)


def test_the_program_trains_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    """With a configuration by name, from inside the wheel; everything it writes is below that folder."""
    place = tmp_path / "place"
    place.mkdir()
    write_text(place / "text.txt")
    tiny = ["model.num_hidden_layers=1", "model.hidden_size=16", "model.num_attention_heads=2"]
    tiny += ["tokenizer.vocab_size=200", "data.path=text.txt", "data.holdout=0.2", "run.device=cpu"]
    steps = ["train.steps=2", "train.phases=[{batch_size: 4, sequence_length: 32}]", "tracking.wandb=off"]
    done = bertillery(installed, place, "pretrain", "bert_docs", *tiny, *steps)
    assert done.returncode == 0, done.stderr
    assert "\x1b" not in done.stdout + done.stderr
    assert {path.name for path in place.iterdir()} == {"text.txt", "runs", "data"}
    assert (place / "runs/pretrain/bert_docs/export/model.safetensors").is_file()


def test_a_wrong_command_or_name_is_one_message(installed: Path, tmp_path: Path) -> None:
    for given, said in (
        (["pretran"], "error: no command 'pretran'; did you mean 'pretrain'?\n"),
        (["pretrain", "bert_mni"], "error: no configuration 'bert_mni'; did you mean bert_mini"),
    ):
        done = bertillery(installed, tmp_path, *given)
        assert done.returncode == 2
        assert done.stderr.startswith(said)
        assert len(done.stderr.splitlines()) == 1


def test_a_missing_folder_of_configurations_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    BertConfig(hidden_size=256, num_attention_heads=4).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(recipes, "RECIPES", tmp_path / "recipes")
    for name in ("auto", "bert"):
        with pytest.raises(ConfigError, match=f"{tmp_path}/recipes: no such folder"):
            recipes.choose_recipe(str(tmp_path / "model"), name)
    monkeypatch.setattr("experiments.space.SPACES", tmp_path / "spaces")
    with pytest.raises(ConfigError, match=f"{tmp_path}/spaces: no such folder"):
        read_space("default")

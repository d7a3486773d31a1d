"""Runs and exports in ``tests/before``, made before the move, still load, resume, and serve as models and teachers.

Everything goes through the commands. The numbers were recorded on one machine: on it they are the same bit for bit, on
another one up to rounding.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from distill.__main__ import main as distill
from finetune.__main__ import main as finetune
from pretrain.__main__ import main as pretrain

BEFORE = Path(__file__).with_name("before")
COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"pretrain": pretrain, "finetune": finetune, "distill": distill}
GIVEN = {
    "pretrain/bert": [],
    "pretrain/electra": [],
    "pretrain/albert": [],
    "finetune/topic": ["model.from=runs/pretrain/bert/export"],
    "finetune/years": ["model.from=runs/pretrain/electra/export"],
    "distill/distilbert": ["teacher.from=runs/pretrain/bert/export"],
    "distill/tinybert": ["teacher.from=runs/pretrain/bert/export"],
}
"""What was given beside the YAML of each run's name."""
KILLED = {
    "pretrain/bert": True, "pretrain/electra": True, "pretrain/albert": True,
    "finetune/topic": False, "distill/distilbert": True, "distill/tinybert": False,
}  # fmt: skip
"""Runs of which there is a killed one, and whether it reads a corpus of its own; TinyBERT's is DistilBERT's."""
LOSSES = "train/loss", "held_out/loss"
TEXT_TIME = 1_600_000_000
"""Seconds; checkouts do not keep it."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, elsewhere than where it was made; the commands are given there."""
    copy = tmp_path / "place"
    shutil.copytree(BEFORE, copy)
    os.utime(copy / "text.txt", (TEXT_TIME, TEXT_TIME))
    monkeypatch.chdir(copy)
    return copy


def run(name: str, *more: str, called: str | None = None) -> int:
    """Type the command of a run again, with another name if one is given."""
    stage, yaml_name = name.split("/")
    return COMMANDS[stage]([f"{yaml_name}.yaml", *GIVEN[name], f"run.name={called or yaml_name}", *more])


def losses(folder: Path) -> list[tuple[int, str, float]]:
    """Step, name and value of every loss on record."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], name, row[name]) for row in rows for name in LOSSES if name in row]


def check_alike(found: Path, recorded: Path) -> None:
    """The losses and the exported weights of two runs are the same up to rounding.

    But for the biases of attention keys: nothing depends on them, and their gradients are nothing but rounding, which
    Adam brings to the size of all others.
    """
    here, there = losses(found), losses(recorded)
    assert [row[:2] for row in here] == [row[:2] for row in there]
    assert len(there) > 6
    assert [row[2] for row in here] == pytest.approx([row[2] for row in there], rel=1e-5)
    for file in sorted((recorded / "export").rglob("*.safetensors")):
        ours, theirs = load_file(found / "export" / file.relative_to(recorded / "export")), load_file(file)
        assert ours.keys() == theirs.keys()
        for key in theirs:
            if not key.endswith(("key.bias", "k_lin.bias")):
                torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=1e-4, msg=lambda m, k=key: f"{k}: {m}")


def go_on(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Resume a killed run; it comes to where the uninterrupted one came."""
    assert run(name, called=f"{Path(name).name}-killed") == 0
    assert "resuming at step 8" in capsys.readouterr().out
    check_alike(Path("runs", f"{name}-killed"), Path("runs", name))


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_run_goes_on(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(name, capsys)


@pytest.mark.parametrize("name", [name for name, reads in KILLED.items() if reads])
def test_a_killed_run_goes_on_with_a_corpus_prepared_anew(
    place: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a text that was touched: it has to become the same tokens."""
    shutil.rmtree(place / "data")
    os.utime(place / "text.txt")
    go_on(name, capsys)


@pytest.mark.parametrize("name", GIVEN)
def test_a_finished_run_is_left_alone(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*")}
    assert run(name) == 0
    said = capsys.readouterr().out
    assert "is finished; for another run" in said
    assert "result of other inputs" not in said
    assert json.loads((place / "runs" / name / "finished.json").read_text())["table"] in said
    assert {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*")} == before


def test_a_lost_export_is_made_again(place: Path) -> None:
    """From the checkpoint and the corpus that was prepared; the text is gone."""
    (place / "text.txt").unlink()
    folder = place / "runs/pretrain/bert"
    there = (folder / "export/model.safetensors").read_bytes()
    shutil.rmtree(folder / "export")
    assert run("pretrain/bert") == 0
    assert (folder / "export/model.safetensors").read_bytes() == there


@pytest.mark.parametrize("name", GIVEN)
def test_the_configuration_in_the_folder_is_read(place: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As it was written, with every value; keys may have been added since, and empty keys of other task types gone."""
    stage, file = name.split("/")[0], place / "runs" / name / "config.yaml"
    assert COMMANDS[stage]([str(file), "run.name=again", "--print-config"]) == 0
    there, here = yaml.safe_load(file.read_text()), yaml.safe_load(capsys.readouterr().out)
    there["run"]["name"] = "again"
    assert_within(there, here)


def assert_within(old: Any, new: Any, place: str = "") -> None:
    if isinstance(old, dict):
        kept = [key for key, value in old.items() if key in new or value not in (None, [])]
        assert {*kept} <= new.keys(), place
        for key in kept:
            assert_within(old[key], new[key], f"{place}.{key}")
    else:
        assert old == new, place


@pytest.mark.parametrize("name", ["pretrain/bert", "finetune/topic", "finetune/years", "distill/distilbert"])
def test_the_configuration_in_the_folder_reruns(place: Path, name: str) -> None:
    """With the same result: an export from before serves as ``MODEL=`` and ``TEACHER=`` as it did then."""
    assert COMMANDS[name.split("/")[0]]([f"runs/{name}/config.yaml", "run.name=again"]) == 0
    check_alike((place / "runs" / name).with_name("again"), place / "runs" / name)


@pytest.mark.parametrize("name", ["bert", "electra", "albert"])
def test_pretraining_goes_on_from_an_export(place: Path, name: str) -> None:
    """All heads and, of ELECTRA, the generator included: at a rate of nearly 0 the held-out loss stays what it was."""
    weights = f"model.from=runs/pretrain/{name}/export"
    still = ["train.steps=1", "train.evaluate_every=1", "train.save_every=1", "optim.learning_rate=1e-12"]
    assert run(f"pretrain/{name}", weights, *still, "optim.warmup=0", called="on") == 0
    found = json.loads((place / "runs/pretrain/on/finished.json").read_text())["held_out"]
    recorded = json.loads((place / "runs/pretrain" / name / "finished.json").read_text())["held_out"]
    assert found["loss"] == pytest.approx(recorded["loss"], rel=1e-4)


EXPORTS: dict[str, list[Any]] = {
    "pretrain/bert": [AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining],
    "pretrain/electra": [AutoModel, AutoModelForPreTraining],
    "pretrain/electra/export/generator": [AutoModel, AutoModelForMaskedLM],
    "pretrain/albert": [AutoModel, AutoModelForMaskedLM, AutoModelForPreTraining],
    "finetune/topic": [AutoModel, AutoModelForSequenceClassification],
    "finetune/years": [AutoModel, AutoModelForQuestionAnswering],
    "distill/distilbert": [AutoModel, AutoModelForMaskedLM],
    "distill/tinybert": [AutoModel],
}


@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_loads_whole(name: str) -> None:
    """As stock models do; the joint head for answers by the class that the commands have registered."""
    path = BEFORE / "runs" / (name if "/export" in name else f"{name}/export")
    inputs = AutoTokenizer.from_pretrained(path)("The old river opens.", return_tensors="pt")
    for kind in EXPORTS[name]:
        model, report = kind.from_pretrained(path, output_loading_info=True)
        assert not report["missing_keys"]
        assert not report["mismatched_keys"]
        assert not any(value.isnan().any() for value in model.eval()(**inputs).values() if torch.is_tensor(value))


@pytest.mark.parametrize("name", ["pretrain/albert", "finetune/topic", "distill/distilbert", "distill/tinybert"])
def test_an_export_is_fine_tuned(place: Path, name: str) -> None:
    start = f"model.from=runs/{name}/export"
    assert finetune(["topic.yaml", start, "run.name=tuned", "train.steps=2", "train.log_every=1"]) == 0
    assert all(math.isfinite(value) for *_, value in losses(place / "runs/finetune/tuned"))


def test_a_joint_head_is_fine_tuned_further(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert finetune(["years.yaml", "model.from=runs/finetune/years/export", "run.name=tuned", "train.steps=2"]) == 0
    assert "newly initialised" not in capsys.readouterr().out
    first = losses(place / "runs/finetune/tuned")[0]
    assert first[2] < losses(place / "runs/finetune/years")[0][2] / 2


def test_a_classifier_teaches_a_task(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """TinyBERT's two stages: a student that a general distillation left, whose matrix between widths goes on."""
    short = {"steps": 2, "phases": [{"batch_size": 8, "sequence_length": 32}], "log_every": 1}
    method: dict[str, Any] = {"objective": {"type": "tinybert"}, "train": short}
    (place / "answers.yaml").write_text(yaml.safe_dump({**method, "before": method}))
    models = ["teacher.from=runs/finetune/topic/export", "model.from=runs/distill/tinybert/export"]
    assert distill(["answers.yaml", "topic.yaml", *models, "run.name=taught"]) == 0
    assert "fit_dense" in capsys.readouterr().out
    assert (place / "runs/distill/taught/export/model.safetensors").exists()

"""A fine-tuning run, or a distillation for a task, is what it was begun from: rows, starting weights, teacher."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification

import finetune.stage
from distill.__main__ import main as distill
from experiments import seeds
from finetune.__main__ import main
from finetune.task_types.base import TaskType
from tests.corpora import tiny_tokenizer
from tests.finetune.tasks import SIZES, write_encoder, write_task
from tests.kept import restored

RUN = "runs/finetune/a"
STEPS = [
    "train.steps=4",
    "train.save_every=2",
    "train.evaluate_every=2",
    "run.threads=1",
    "tracking.wandb=off",
    "train.keep=9",
]


def arguments(folder: Path) -> list[str]:
    places = ["run.name=a", f"run.dir={folder}/runs", f"model.from={folder}/encoder"]
    return [str(folder / "toy/task.yaml"), *places, *STEPS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a task, an encoder and a finished run."""
    folder = tmp_path_factory.mktemp("identity")
    write_encoder(folder / "encoder")
    write_task(folder / "toy")
    assert main(arguments(folder)) == 0
    return folder


@pytest.fixture
def folder(finished: Path) -> Path:
    """The same folder, in which every test finds the same files."""
    return restored(finished)


def interrupt(run: Path) -> None:
    """Make the run what it was after the first of its two checkpoints."""
    (run / "finished.json").unlink()
    shutil.rmtree(run / "export")
    shutil.rmtree(run / "checkpoints/step-0000000004")


def edit_label(folder: Path, split: str = "train") -> None:
    """Another label for one row; the file is as large as before."""
    file = folder / f"toy/{split}.jsonl"
    first, *others = file.read_text().splitlines()
    row = json.loads(first)
    row["label"] = "blue" if row["label"] != "blue" else "red"
    file.write_text("\n".join([json.dumps(row), *others]) + "\n")


def edit_test_text(folder: Path) -> None:
    file = folder / "toy/test.jsonl"
    file.write_text(file.read_text().replace("w1 ", "w2 ", 1).replace("w4 ", "w2 ", 1))


def edit_weights(folder: Path) -> None:
    file = folder / "encoder/model.safetensors"
    tensors = load_file(file)
    tensors[next(iter(tensors))] += 1
    save_file(tensors, file, metadata={"format": "pt"})


CHANGES: dict[str, Callable[[Path], None]] = {
    "train rows": edit_label,
    "validation rows": lambda folder: edit_label(folder, "validation"),
    "test rows": edit_test_text,
    "starting weights": edit_weights,
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_inputs_are_refused_by_name_and_a_finished_run_names_them(
    folder: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    CHANGES[name](folder)
    assert main(arguments(folder)) == 0
    said = capsys.readouterr().out
    assert "is finished; for another run" in said
    assert f"  - {name}: was " in said
    assert said.count(": was ") == 1
    interrupt(folder / RUN)
    assert main(arguments(folder)) == 2
    error = capsys.readouterr().err
    assert "was made from other inputs" in error
    assert f"  - {name}: was " in error
    assert not (folder / RUN / "export").exists()


def test_nothing_is_said_of_files_that_only_look_new(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in [*(folder / "toy").glob("*.jsonl"), *(folder / "encoder").iterdir()]:
        file.write_bytes(file.read_bytes())
    assert main(arguments(folder)) == 0
    said = capsys.readouterr().out
    assert "is finished; for another run" in said
    assert "NOTE" not in said
    interrupt(folder / RUN)
    assert main(arguments(folder)) == 0


def test_seeds_say_what_has_changed_since(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"tasks=[{folder}/toy/task.yaml]", f"model.from={folder}/encoder", f"run.dir={tmp_path}", *STEPS]
    run = tmp_path / "finetune/classification_toy/encoder/seed-1"
    assert main([str(folder / "toy/task.yaml"), *given[1:], "run.seed=1"]) == 0
    for changed in (False, True):
        if changed:
            edit_label(folder)
        capsys.readouterr()
        assert seeds.main(given) == 0
        assert (f"NOTE: {run} is the result of other inputs" in capsys.readouterr().out) == changed


@pytest.mark.parametrize("finished_json", [True, False])
def test_a_run_without_its_export_exports_again(folder: Path, finished_json: bool) -> None:
    run = folder / RUN
    names = ["export/model.safetensors", "export/tokenizer.json", "export/README.md", "predictions/test.tsv"]
    expected, results = [(run / name).read_bytes() for name in names], (run / "finished.json").read_text()
    shutil.rmtree(run / "export")
    if not finished_json:
        (run / "finished.json").unlink()
    assert main(arguments(folder)) == 0
    assert [(run / name).read_bytes() for name in names] == expected
    assert (run / "finished.json").read_text() == results


def test_lost_predictions_are_made_again_for_tables_too(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, lost = folder / RUN, "predictions/validation.tsv"
    expected = (run / lost).read_bytes()
    shutil.rmtree(run / "predictions")
    assert main(arguments(folder)) == 0
    assert f"is finished, but {run / lost} is missing: it is exported again" in capsys.readouterr().out
    assert (run / lost).read_bytes() == expected
    assert not (run / "export.damaged").exists()
    given = [f"tasks=[{folder}/toy/task.yaml]", f"model.from={folder}/encoder", f"run.dir={tmp_path}", *STEPS]
    for seed in (1, 2):
        assert main([str(folder / "toy/task.yaml"), *given[1:], f"run.seed={seed}"]) == 0
    (tmp_path / f"finetune/classification_toy/encoder/seed-2/{lost}").unlink()
    assert seeds.main([*given, "seeds=2"]) == 0
    assert "1 runs" in capsys.readouterr().out


def fail(*_: object, **__: object) -> None:
    raise RuntimeError("nothing to see")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(TaskType, "baselines"), (finetune.stage, "hardest_examples"), (finetune.stage, "plot_curves"),
     (finetune.stage, "model_card"), (TaskType, "draw"), (finetune.stage.Finetuning, "ending")],
)  # fmt: skip
def test_what_is_only_shown_never_costs_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, owner: object, name: str
) -> None:
    run = folder / RUN
    expected = (run / "export/model.safetensors").read_bytes()
    interrupt(run)
    for each in [owner, *(owner.__subclasses__() if owner is TaskType else [])]:  # type: ignore[attr-defined]
        monkeypatch.setattr(each, name, fail)
    _everywhere(monkeypatch, owner, name)
    assert main(arguments(folder)) == 0
    assert "nothing to see" in caplog.text
    assert (run / "export/model.safetensors").read_bytes() == expected
    assert (run / "predictions/test.tsv").exists()
    assert json.loads((run / "finished.json").read_text())["scores"]["validation"]


def _everywhere(monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
    """In the classes below those that were set, too."""
    below = [*owner.__subclasses__()] if isinstance(owner, type) else []
    for each in below:
        if name in vars(each):
            monkeypatch.setattr(each, name, fail)
        _everywhere(monkeypatch, each, name)


def test_weights_that_are_no_numbers_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not the learning rate, and before the first step."""
    shutil.rmtree(folder / "runs")
    file = folder / "encoder/model.safetensors"
    tensors = load_file(file)
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = torch.nan
    save_file(tensors, file, metadata={"format": "pt"})
    assert main(arguments(folder)) == 2
    error = capsys.readouterr().err
    assert f"{folder}/encoder: its weights are not finite" in error
    assert "encoder.layer.0.output.dense.weight" in error
    assert "learning_rate" not in error
    assert not (folder / "runs").exists()


def test_a_student_is_pinned_to_its_teacher(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels = dict(enumerate(["red", "green", "blue"]))
    named = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    teacher = folder / "runs/teacher"
    config = BertConfig(**SIZES, vocab_size=64, max_position_embeddings=64, **named)
    BertForSequenceClassification(config).save_pretrained(teacher)
    tiny_tokenizer(64).save_pretrained(teacher)
    task, *given = arguments(folder)
    given = [task, *given, f"teacher.from={teacher}", "objective.type=distilbert"]
    assert distill(given) == 0
    model = load_file(teacher / "model.safetensors")
    model["classifier.bias"] += 1
    save_file(model, teacher / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    assert distill(given) == 0
    assert "  - teacher: was " in capsys.readouterr().out
    run = folder / "runs/distill/a"
    assert {"student", "teacher", "tokenizer", "train rows"} <= {*json.loads((run / "inputs.json").read_text())}
    interrupt(run)
    assert distill(given) == 2
    assert "  - teacher: was " in capsys.readouterr().err

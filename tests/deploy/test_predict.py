"""Predictions of files are those of the end of a training, whatever the form, the size and the part of the file."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForTokenClassification

from bertillery.data.tables import Part
from deploy.predict import main
from finetune import task
from finetune.__main__ import main as finetune
from tests.corpora import tiny_tokenizer
from tests.deploy.conftest import rows_of
from tests.finetune.tasks import read_outputs, sentences, write_encoder
from tests.finetune.test_task_types import write_task

SHORT = (
    "train.steps=2", "train.evaluate_every=2", "train.save_every=2", "train.phases.0.sequence_length=64",
)  # fmt: skip
"""Of a training."""


def predict(model: Path, *given: str) -> int:
    return main([f"model={model}", "run.device=cpu", "run.precision=fp32", *given])


def columns_of(file: Path) -> dict[str, list[Any]]:
    """The cells of a file of predictions."""
    if file.suffix == ".parquet":
        return pq.read_table(file).to_pydict()
    if file.suffix == ".jsonl":
        rows = rows_of(file)
    else:
        with file.open(newline="") as stream:
            rows = [*csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")]
    return {name: [row[name] for row in rows] for name in rows[0]}


def rewritten(file: Path, suffix: str) -> Path:
    """Texts and labels of a jsonl file in another form."""
    rows, place = rows_of(file), file.with_name(f"same{suffix}")
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), place)
    elif suffix == ".jsonl":
        shutil.copy(file, place)
    else:
        with place.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, [*rows[0]], delimiter="\t" if suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return place


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("rows", [4, 2048])
def test_a_file_is_predicted_as_the_split_was(
    finetuned: Path, suffix: str, rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To float32, also in parts of four rows; the columns of the file are there as they were."""
    monkeypatch.setattr(task, "Part", lambda: Part(rows=rows))
    given = rewritten(finetuned.parents[2] / "task/validation.jsonl", suffix)
    place = tmp_path / f"out{suffix}"
    assert predict(finetuned / "export", f"data=[{given}]", f"output={place}") == 0
    found, before = columns_of(place), columns_of(given)
    assert [*found] == [*before, "prediction", "p(red)", "p(green)", "p(blue)"]
    assert {name: found[name] for name in before} == before
    shares = np.array([found[f"p({name})"] for name in ("red", "green", "blue")], dtype=np.float64).T
    np.testing.assert_allclose(shares, read_outputs(finetuned / "predictions/validation.tsv"), atol=2e-6)
    assert found["prediction"] == [["red", "green", "blue"][best] for best in shares.argmax(1)]
    assert not [*tmp_path.glob("*.partial")]


def test_an_export_alone_knows_its_task(finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Away from its run, and named nothing of this machine; labels are said not to be read."""
    shutil.copytree(finetuned / "export", tmp_path / "model")
    assert str(tmp_path.parents[0]) not in (tmp_path / "model/task.yaml").read_text()
    given = finetuned.parents[2] / "task/test.jsonl"
    place = tmp_path / "out.jsonl"
    assert predict(tmp_path / "model", f"data=[{given}]", f"output={place}") == 0
    said = capsys.readouterr().out
    assert "it has labels ('label'), which a prediction does not need" in said
    unlabelled = tmp_path / "b.jsonl"
    unlabelled.write_text("".join(json.dumps({**row, "label": None}) + "\n" for row in rows_of(given)))
    assert predict(finetuned / "export", f"data=[{unlabelled}]", f"output={tmp_path / 'b2.jsonl'}") == 0
    assert "labels" not in capsys.readouterr().out
    assert columns_of(place)["p(red)"] == columns_of(tmp_path / "b2.jsonl")["p(red)"]


def test_other_names_of_columns_and_long_texts(
    finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Texts are cut as in training, which is said; ``task.text`` names the columns of the file."""
    row = {"a": "w1 " * 50, "b": "w2 " * 9}
    (tmp_path / "long.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"a": "w1", "b": "w2"}) + "\n")
    place = tmp_path / "out.csv"
    given = [f"data=[{tmp_path}/*.jsonl]", f"output={place}"]
    assert predict(finetuned / "export", *given, "task.text=[a, b]") == 0
    assert "1 were longer than 24 tokens: cut as in training" in capsys.readouterr().out
    assert len(columns_of(place)["prediction"]) == 2


def test_what_fails_leaves_no_file(finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All rows that cannot be predicted are told at once, before anything is written."""
    (tmp_path / "a.jsonl").write_text(
        '{"first": "w1", "second": "w2"}\n{"first": 3, "second": "w2"}\n{"first": "w1"}\n'
    )
    before = sorted(tmp_path.iterdir())
    assert predict(finetuned / "export", f"data=[{tmp_path}/a.jsonl]", f"output={tmp_path}/out.csv") == 2
    said = capsys.readouterr().err
    assert "2 of 3 rows cannot be used" in said
    assert "a.jsonl:2" in said
    assert "a.jsonl:3" in said
    assert predict(finetuned / "export", f"data=[{tmp_path}/a.jsonl]", f"output={tmp_path}/a.jsonl") == 2
    assert "is the file that is read" in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == before


def test_predictions_are_not_predicted_again(
    finetuned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = finetuned.parents[2] / "task/test.jsonl"
    once, twice = tmp_path / "once.jsonl", tmp_path / "twice.jsonl"
    assert predict(finetuned / "export", f"data=[{given}]", f"output={once}") == 0
    assert predict(finetuned / "export", f"data=[{once}]", f"output={twice}") == 2
    assert "has the column 'prediction' already" in capsys.readouterr().err
    assert not twice.exists()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder") / "tiny")


@pytest.mark.parametrize("kind", ["choice", "spans", "graph_choice"])
def test_other_tasks_are_predicted_as_at_the_end_of_training(tmp_path: Path, kind: str, encoder: Path) -> None:
    arguments = [*write_task(tmp_path, kind, encoder), *SHORT]
    assert finetune(arguments) == 0
    run, place = tmp_path / "runs/finetune/all", tmp_path / "out.jsonl"
    (file,) = tmp_path.glob("all.json*")
    assert predict(run / "export", f"data=[{file}]", f"output={place}", f"run.data_dir={tmp_path}/data") == 0
    lines = [line.split("\t") for line in (run / "predictions/validation.tsv").read_text().splitlines()]
    found = columns_of(place)
    assert [" ".join(text.split()) for text in found["prediction"]] == [line[1] for line in lines[1:]]
    for column, name in enumerate(lines[0][3:], 3):
        np.testing.assert_allclose(found[name], [float(line[column]) for line in lines[1:]], atol=2e-5)
    if kind == "spans":
        places = zip(found["context"], found["start"], found["end"], strict=True)
        assert [context[start:end] for context, start, end in places] == found["prediction"]


def test_words_have_a_tag_a_probability_and_entities(tmp_path: Path) -> None:
    """Words that do not fit are predicted as O, without a probability."""
    torch.manual_seed(0)
    tags = ["O", "B-a", "I-a"]
    encoder, names = write_encoder(tmp_path / "encoder"), dict(enumerate(tags))
    options: Any = {"id2label": names, "label2id": {tag: number for number, tag in names.items()}}
    model: Any = AutoModelForTokenClassification.from_pretrained(encoder, **options)
    model.classifier.bias.data[1] = 9.0
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer(64).save_pretrained(tmp_path / "model")
    section = {"name": "t", "type": "tokens", "text": "words", "labels": tags, "metrics": "f1"}
    (tmp_path / "model/task.yaml").write_text(json.dumps({"task": section, "sequence_length": 8}))
    texts = [text.split() for text in sentences(5, 0)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"words": words}) + "\n" for words in texts))
    assert predict(tmp_path / "model", f"data=[{tmp_path}/a.jsonl]", f"output={tmp_path}/out.jsonl") == 0
    for row, words in zip(rows_of(tmp_path / "out.jsonl"), texts, strict=True):
        there: Any = row
        kept = sum(share is not None for share in there["probability"])
        assert kept == min(len(words), 6)
        assert there["prediction"] == ["B-a"] * kept + ["O"] * (len(words) - kept)
        assert there["entities"] == [f"a: {word}" for word in words[:kept]]
        assert all(share > 0.9 for share in there["probability"][:kept])
    assert predict(tmp_path / "model", f"data=[{tmp_path}/a.jsonl]", f"output={tmp_path}/out.parquet") == 0
    assert columns_of(tmp_path / "out.parquet") == columns_of(tmp_path / "out.jsonl")

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForMultipleChoice, PreTrainedModel

from bertillery.config.section import ConfigError, InputError, validate
from bertillery.models.load import load
from finetune.data.splits import Split, Task, read_task
from finetune.task import TaskSection, task_type_of
from finetune.task_types.base import Predicted
from finetune.task_types.choice import ChoiceExamples
from tests.finetune.texts import WORDS, wordpiece, write_encoder


def asked(number: int = 12, seed: int = 0) -> Split:
    """Questions of two to four choices; where there are less than four, any may be missing."""
    rng = np.random.default_rng(seed)

    def text() -> str:
        return " ".join(rng.choice([*WORDS, "Bridge", "castles"], rng.integers(1, 9)))

    choices = [[text() for _ in range(4)] for _ in range(number)]
    labels = rng.integers(0, 4, number)
    for each, label in zip(choices, labels, strict=True):
        for gone in rng.permutation(4)[: rng.integers(0, 3)]:
            each[gone] = each[gone] if gone == label else ""
    return Split("train", ([text() for _ in range(number)], choices), labels, np.arange(number))


def section(folder: Path, **changes: Any) -> TaskSection:
    plain: dict[str, Any] = {"name": "own", "type": "choice", "text": "q", "choices": ["a", "b", "c", "d"]}
    plain |= {"labels": [0, 1, 2, 3], "metrics": "accuracy", "root": folder, "files": {"train": "train.jsonl"}}
    return validate(TaskSection, plain | changes)


def read(folder: Path, *rows: dict[str, Any], **changes: Any) -> Task:
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return read_task(section(folder, **changes), data_dir=folder, glue_dir=None)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> PreTrainedModel:
    folder = write_encoder(tmp_path_factory.mktemp("choice") / "model")
    return load(AutoModelForMultipleChoice, folder)[0]


def probabilities(model: PreTrainedModel, split: Split, index: np.ndarray) -> np.ndarray:
    """(N, 4), with 0 for what is not there."""
    examples = ChoiceExamples(split, wordpiece(), max_length=40, seed=0)
    objective = task_type_of(section(Path())).objective(model)
    batch = examples.collate(examples.examples(0, 0)[index])
    with torch.no_grad():
        outputs = objective.outputs(objective.logits(batch), batch).numpy()  # pyright: ignore
    table = np.zeros((len(index), 4))
    table[examples.there[index]] = outputs[:, 0]
    return table


def test_permuting_the_choices_permutes_what_they_get(model: PreTrainedModel) -> None:
    split, index, order = asked(), np.array([7, 0, 3, 11]), [2, 0, 3, 1]
    turned = Split("train", (split.texts[0], [[each[i] for i in order] for each in split.texts[1]]), None, split.index)
    got = probabilities(model, split, index)
    np.testing.assert_allclose(probabilities(model, turned, index), got[:, order], rtol=1e-5)
    np.testing.assert_allclose(got.sum(1), 1, rtol=1e-6)
    assert got.max() - got[got > 0].min() > 0.01


def test_training_is_the_stock_models_loss(model: PreTrainedModel, tmp_path: Path) -> None:
    """Questions of different numbers of choices in one batch are as each of them alone."""
    split = asked()
    assert split.labels is not None
    examples = ChoiceExamples(split, wordpiece(), max_length=60, seed=0)
    assert len(set(examples.per_example)) == 3
    objective = task_type_of(section(tmp_path)).objective(model)
    batch = examples.collate(examples.examples(0, 0))
    model.save_pretrained(tmp_path)
    stock, tokenizer, total, right = AutoModelForMultipleChoice.from_pretrained(tmp_path), wordpiece(), 0.0, 0
    for text, choices, label in zip(*split.texts, split.labels, strict=True):
        kept = [choice for choice in choices if choice]
        inputs = tokenizer([text] * len(kept), kept, padding=True, return_tensors="pt")
        place = sum(bool(choice) for choice in choices[:label])
        with torch.no_grad():
            found = stock(**{name: each[None] for name, each in inputs.items()}, labels=torch.tensor([place]))
        total += float(found.loss)
        right += int(found.logits.argmax()) == place
    with torch.no_grad():
        terms = objective(batch)
    assert float(terms["cross_entropy"].total) == pytest.approx(total, rel=1e-5)
    assert int(terms["accuracy"].total) == right
    assert batch.counts["examples"] == 12


def test_predictions_are_choices_that_are_there(tmp_path: Path) -> None:
    kind, split = task_type_of(section(tmp_path)), asked()
    examples = kind.examples(split, wordpiece(), max_length=40, seed=0)
    assert isinstance(examples, ChoiceExamples)
    assert split.labels is not None
    index = np.array([4, 9, 1])
    right = np.arange(4) == split.labels[index][:, None]
    outputs = right[examples.there[index]].astype(np.float32)[:, None]
    predictions = kind.decide(outputs, examples, index)
    assert predictions.tolist() == split.labels[index].tolist()
    assert kind.scores(predictions, split.labels[index]) == {"accuracy": 1}
    whole = np.concatenate([np.full((n, 1), 1 / n, np.float32) for n in examples.per_example])
    names, table = kind.columns(Predicted(split, whole, split.labels))
    assert names == ["p(0)", "p(1)", "p(2)", "p(3)"]
    np.testing.assert_allclose(table.sum(1), 1, rtol=1e-6)
    assert ((table > 0) == examples.there).all()


def test_ways_to_write_choices(tmp_path: Path) -> None:
    """Columns, some of them empty, behind what they begin with; a list; or, as on the Hub, a list with names."""
    row = {"q": "Q", "begin": "It", "a": "is", "b": "", "c": "was", "d": None, "label": "2"}
    split = read(tmp_path, row, row, text=["q", "begin"]).split("train")
    assert split.texts == (["Q", "Q"], [["It is", "", "It was", ""]] * 2)
    assert split.labels is not None
    assert split.labels.tolist() == [2, 2]
    listed = read(tmp_path, {"q": "Q", "all": ["is", "was"], "label": 1}, choices="all").split("train")
    assert (listed.texts[1], listed.labels.tolist()) == ([["is", "was"]], [1])  # pyright: ignore
    rows = [
        {"q": "Q", "all": {"text": ["x", "y"], "label": list(names)}, "label": names[1], "key": "m_1"}
        for names in ("AB", "12")
    ]
    named = read(tmp_path, *rows, choices="all", labels=["A", "B", "C"], index="key").split("train")
    assert named.labels.tolist() == [1, 1]  # pyright: ignore
    assert named.index.tolist() == ["m_1", "m_1"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": "x", "b": "", "c": "", "d": "", "label": 0}, "less than two choices"),
        ({"a": "x", "b": "y", "c": "", "d": "", "label": 2}, "the label is that of choice 3, which is empty"),
        ({"a": "x", "b": "y", "c": "", "d": "", "label": 4}, "'label' holds '4', which is none of 0, 1, 2, 3"),
        ({"a": "x", "b": 3, "c": "", "d": "", "label": 0}, "a int where a text is expected"),
    ],
)
def test_choices_that_cannot_be_used(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(tmp_path, {"q": "Q", **row})


def test_named_choices_that_cannot_be_used(tmp_path: Path) -> None:
    row = {"q": "Q", "all": {"text": ["x", "y"], "label": ["A", "B"]}, "label": "C"}
    with pytest.raises(InputError, match="the label is 'C', and the choices are called A, B"):
        read(tmp_path, row, choices="all")
    with pytest.raises(InputError, match=r"2 choices, and task\.labels names 0"):
        read(tmp_path, row, choices="all", labels=[])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"choices": []}, "choices names the columns of the choices"),
        ({"labels": [0, 1]}, "there are 4 choices and 2 labels, which name them"),
        (
            {"type": "classification"},
            "it belongs to task.type=choice or graph_choice, and this task is of type classification",
        ),
        (
            {"spans": {}},
            "spans: unknown key; it belongs to task.type=.*spans, and this task is of type choice",
        ),
        ({"metrics": "f1"}, "metrics f1: for choice there are accuracy"),
    ],
)
def test_a_section_that_does_not_fit(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        section(tmp_path, **changes)

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from bertillery.config.layers import read_values
from bertillery.config.section import InputError, validate
from finetune import baselines as module
from finetune.data.splits import Split, Task, read_task
from finetune.task import TaskSection, task_type_of

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("BERTILLERY_DATA", ROOT / "../shared/data"))
WORDS = ["river", "engine", "garden", "market", "harbour", "library", "mountain", "kitchen"]


def made_task(kind: str, metrics: list[str], *, pair: bool = False, seed: int = 0) -> Task:
    """Texts of eight words; the label is whether "river" is in it, or whether a pair is alike."""
    rng = np.random.default_rng(seed)
    splits = {}
    for name, count in (("train", 200), ("validation", 80)):
        texts = [list(rng.choice(WORDS[1:], 8)) for _ in range(count)]
        on = rng.random(count) < 0.3
        second = [text if same else list(rng.choice(WORDS[1:], 8)) for text, same in zip(texts, on, strict=True)]
        for text, is_on in zip(texts, on, strict=True):
            text[3] = "river" if is_on and not pair else text[3]
        columns = [[" ".join(text) for text in texts]] + [[" ".join(text) for text in second]] * pair
        labels = {
            "classification": on.astype(np.int64),
            "regression": on.astype(np.float32) * 2 + 1,
            "multilabel": np.stack([on, on, ~on, np.zeros_like(on)], axis=1).astype(np.float32),
        }[kind]
        splits[name] = Split(name, tuple(columns), labels, np.arange(count))
    names = {"classification": ["no", "yes"], "regression": [], "multilabel": ["a", "b", "c", "never"]}[kind]
    section = {"name": "made", "type": kind, "labels": names, "metrics": metrics, "files": {"train": "-"}}
    return Task(validate(TaskSection, section | {"text": ["one", "two"][: 1 + pair]}), splits, {}, "")


def baselines(task: Task, split: str) -> dict[str, dict[str, float]]:
    return task_type_of(task.section).baselines(task, split)


@pytest.mark.parametrize("pair", [False, True])
def test_majority_counts_and_bag_of_words_finds_the_word(pair: bool) -> None:
    task = made_task("classification", ["accuracy", "f1"], pair=pair)
    got = baselines(task, "validation")
    labels = task.split("validation").labels
    assert labels is not None
    assert got["majority"] == {"accuracy": pytest.approx(1 - labels.mean()), "f1": 0.0}
    assert got.get("overlap", {"accuracy": 1.0})["accuracy"] > 0.97
    assert ("overlap" in got) == pair
    assert got["bag of words"]["accuracy"] > 0.97
    assert got == baselines(task, "validation")


def test_majority_is_that_of_training() -> None:
    task = made_task("classification", ["accuracy"])
    train = dataclasses.replace(task.split("train"), labels=np.array([1] * 150 + [0] * 50))
    turned = dataclasses.replace(task, splits=task.splits | {"train": train})
    labels = task.split("validation").labels
    assert labels is not None
    assert baselines(turned, "validation")["majority"]["accuracy"] == pytest.approx(labels.mean())


def test_scores() -> None:
    got = baselines(made_task("regression", ["pearson", "spearman"]), "validation")
    assert got["mean"] == {"pearson": 0.0, "spearman": 0.0}
    assert got["bag of words"]["pearson"] > 0.9


def test_several_labels_one_of_which_never_occurs() -> None:
    task = made_task("multilabel", ["accuracy", "macro_f1"])
    got, labels = baselines(task, "validation"), task.split("validation").labels
    assert labels is not None
    assert got["bag of words"]["accuracy"] > 0.97
    assert got["majority"]["accuracy"] == pytest.approx(1 - labels[:, 0].mean())


def test_order_of_a_pair_and_other_examples_change_nothing() -> None:
    task = made_task("classification", ["accuracy"], pair=True)
    train, held_out = task.split("train"), task.split("validation")
    known, expected = module._features(train, held_out)
    few = dataclasses.replace(held_out, texts=tuple(texts[:7] for texts in held_out.texts[::-1]))
    _, features = module._features(train, few)
    np.testing.assert_array_equal(features.toarray(), expected[:7].toarray())
    assert features.shape[1] == known.shape[1]


def test_no_labels_no_baseline() -> None:
    task = made_task("classification", ["accuracy"])
    bare = dataclasses.replace(task.split("validation"), labels=None)
    with pytest.raises(InputError, match="a baseline needs labels"):
        baselines(dataclasses.replace(task, splits=task.splits | {"validation": bare}), "validation")


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no real tasks in {DATA}; set BERTILLERY_DATA")
@pytest.mark.parametrize(
    ("name", "metric", "majority", "words"),
    [
        ("cola", "matthews_correlation", 0.0, 0.136),
        ("mrpc", "accuracy", 279 / 408, 0.752),
        ("stsb", "pearson", 0, 0.730),
    ],
)
def test_real_tasks(name: str, metric: str, majority: float, words: float) -> None:
    values, _ = read_values([str(ROOT / f"configs/finetune/{name}.yaml")])
    task = read_task(validate(TaskSection, values["task"]), data_dir=DATA, glue_dir=DATA / "glue")
    first, second, *_ = baselines(task, "validation").values()
    assert first[metric] == pytest.approx(majority)
    assert second[metric] == pytest.approx(words, abs=0.02)

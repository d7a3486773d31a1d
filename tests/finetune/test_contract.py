"""The contract that every file in ``finetune/task_types`` keeps, whatever it predicts: a new type is tested by being
there, on rows with one of two labels unless ``TASKS`` and ``write_data`` have others for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from transformers import AutoTokenizer

from bertillery.config.section import ConfigError, describe, validate
from bertillery.models.load import load
from finetune.data.splits import read_task
from finetune.metrics import RANKING
from finetune.predict import predict
from finetune.task import TaskSection, run_of, task_type_of, task_types
from finetune.task_types.base import Predicted, TaskType
from tests.finetune import test_task_types
from tests.finetune.test_task_types import write_data
from tests.finetune.texts import WORDS, write_encoder

TASKS: dict[str, dict[str, Any]] = {
    **test_task_types.TASKS,
    "multilabel": {"labels": ["odd", "high"]},
    "entity_typing": {"labels": ["odd", "high"]},
    "regression": {"range": [0, 3]},
    "translation": {},
}
OTHER = {"labels": ["no", "yes"]}
EVERY = pytest.mark.parametrize("kind", task_types())
ON_ENCODERS = pytest.mark.parametrize(
    "kind", [kind for kind in task_types() if run_of({"type": kind}, "Stage") is None]
)
"""Types that start from an encoder; others have tests of their own runs."""


def own_labels(kind: str, value: int) -> Any:
    several = [name for bit, name in enumerate(("odd", "high")) if value >> bit & 1]
    return {
        "multilabel": several,
        "entity_typing": several,
        "regression": value,
    }.get(kind, ("no", "yes")[value % 2])


def section_of(folder: Path, kind: str) -> TaskSection:
    """A task of the type, with a file of a few rows and every metric that the type has."""
    if kind in test_task_types.TASKS:
        name = write_data(folder, kind)
    else:
        name = "all.jsonl"
        rows = []
        for i in range(9):
            first, second, third = WORDS[i : i + 3]
            at = len(first) + 1
            places = {"mention": [0, len(first)], "head": [0, len(first)], "tail": [at, at + len(second)]}
            rows.append({"text": f"{first} {second} {third}", "label": own_labels(kind, i % 4), **places})
        (folder / name).write_text("\n".join(map(json.dumps, rows)))
    files = dict.fromkeys(("train", "validation", "test"), name)
    given = {"name": kind, "type": kind, "root": str(folder), "files": files, **TASKS.get(kind, OTHER)}
    return validate(TaskSection, {**given, "metrics": list(task_types()[kind].Config.available_metrics)})


@EVERY
def test_the_section_says_what_its_keys_mean_and_refuses_others(kind: str, tmp_path: Path) -> None:
    section = section_of(tmp_path, kind)
    assert type(section) is task_types()[kind].Config
    lines = describe(type(section), "task.").split("\n")
    assert {line.split(" ")[0].split(".")[1] for line in lines[::2]} == {*type(section).model_fields}
    assert [key for key, meaning in zip(lines[::2], lines[1::2], strict=True) if not meaning.strip()] == []
    values = section.model_dump(mode="json", by_alias=True)
    assert validate(TaskSection, values) == section
    with pytest.raises(ConfigError, match="spam: unknown key"):
        validate(TaskSection, {**values, "spam": 1})
    with pytest.raises(ConfigError, match=r"metrics spam: for .* there are "):
        validate(TaskSection, {**values, "metrics": ["spam"]})


@ON_ENCODERS
def test_rows_model_metrics_baselines_and_predictions_answer(kind: str, tmp_path: Path) -> None:
    section, encoder = section_of(tmp_path, kind), write_encoder(tmp_path / "encoder")
    task_type: TaskType = task_type_of(section)
    task_type.data_dir = tmp_path / "data"
    task = read_task(section, data_dir=tmp_path, glue_dir=None)
    split, tokenizer = task.split("validation"), AutoTokenizer.from_pretrained(encoder)
    assert task_type.describe_labels(split.labels)  # pyright: ignore
    torch.manual_seed(0)
    model, _ = load(task_type.model_class, encoder, **task_type.settings())
    model.config.architectures = [type(model).__name__]
    assert task_type.head_fits(model.config)
    examples = task_type.examples(split, tokenizer, max_length=64, seed=0)
    rows = examples.examples(0, 0)
    assert sorted({*rows["index"].tolist()}) == [*range(split.num_examples)]
    objective = task_type.objective(model)
    accelerator = Accelerator(cpu=True)
    outputs, means = predict(accelerator, objective, examples, rows, micro_batch_tokens=100)
    assert len(outputs) == examples.num_outputs(rows["index"]).sum()
    assert np.isfinite(outputs).all()
    assert means
    assert np.isfinite([*means.values()]).all()
    predictions = task_type.decide(outputs, examples, rows["index"])
    predicted = Predicted(split, outputs, predictions)
    assert len(predictions) == split.num_examples
    found = task_type.scores(predictions, predicted.labels, outputs)
    assert list(found) == section.metrics
    of_predictions = [name for name in section.metrics if name not in RANKING]
    assert list(task_type.scores(predictions, predicted.labels)) == of_predictions
    chosen = task_type.choose(predicted)
    assert all(isinstance(value, float) for value in {**found, **chosen}.values())
    baselines = task_type.baselines(task, "validation")
    assert len(baselines) >= 2
    assert all(list(values) == of_predictions for values in baselines.values())
    distances = task_type.distances(predicted)
    assert distances.shape == (split.num_examples,)
    assert (distances >= 0).all()
    names, numbers = task_type.columns(predicted)
    assert numbers.shape == (split.num_examples, len(names))
    for prediction, label in zip(predictions, predicted.labels, strict=True):
        for shown in (task_type.format_prediction(prediction), task_type.format_label(label)):
            assert not {*shown} & {*"\t\n"}
    assert isinstance(task_type.warning(predictions, predicted.labels), str | None)


@ON_ENCODERS
def test_terms_of_halves_add_up_and_have_gradients(kind: str, tmp_path: Path) -> None:
    section, encoder = section_of(tmp_path, kind), write_encoder(tmp_path / "encoder")
    task_type: TaskType = task_type_of(section)
    task_type.data_dir = tmp_path / "data"
    task = read_task(section, data_dir=tmp_path, glue_dir=None)
    torch.manual_seed(0)
    model, _ = load(task_type.model_class, encoder, **task_type.settings())
    objective = task_type.objective(model)
    examples = task_type.examples(
        task.split("train"), AutoTokenizer.from_pretrained(encoder), max_length=64, seed=0, training=True
    )
    rows = examples.examples(0, 0)
    whole, *halves = (examples.collate(part) for part in (rows, rows[:2], rows[2:]))
    found = [objective(half) for half in halves]
    terms = objective(whole)
    for name, term in terms.items():
        total: Any = sum(half[name].total for half in found)
        torch.testing.assert_close(total, term.total, rtol=1e-4, atol=1e-4)
        assert sum(half.counts[term.count] for half in halves) == whole.counts[term.count]
    first = next(iter(terms.values()))
    assert first.weight > 0
    first.total.backward()
    head = [
        parameter
        for name, parameter in model.named_parameters()
        if name.endswith(("classifier.weight", "outputs.weight"))
    ]
    assert head
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in head)

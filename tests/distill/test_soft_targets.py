"""Learning a teacher's answers, for every kind of task."""

from __future__ import annotations

import importlib
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from bertillery.engine.batch import PackedBatch
from bertillery.engine.loop import share_of_loss
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.models.layers.attention import NAME
from distill.objectives import distilbert, tinybert
from distill.soft_targets import Imitation, soft_cross_entropy
from distill.teacher import Teacher
from finetune.predict import Predictor
from tests.models.families import batch_of, tiny_config

LENGTHS = [7, 12, 3, 9, 5, 8]
KINDS: dict[str, tuple[Any, dict[str, Any], dict[str, int]]] = {
    "classification": (
        AutoModelForSequenceClassification,
        {"labels": [0, 2, 1, 1, 0, 2]},
        {"examples": 6},
    ),
    "multilabel": (
        AutoModelForSequenceClassification,
        {"labels": [[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1]]},
        {"examples": 6},
    ),
    "choice": (AutoModelForMultipleChoice, {"choices": [3, 1, 2], "labels": [2, 0, 1]}, {"examples": 3}),
    "tokens": (AutoModelForTokenClassification, {"rows": [1, 3, 9, 20], "labels": [0, 2, 1, 0]}, {"words": 4}),
    "spans": (
        AutoModelForQuestionAnswering,
        {"spans": [[0, 0], [4, 7], [1, 1], [2, 6], [0, 0], [3, 3]]},
        {"windows": 6},
    ),
}
"""Model, targets and count of a batch of six sequences."""
SCORE = (AutoModelForSequenceClassification, {"labels": [0.5, 1.0, -1.0, 2.0, 0.0, 0.3]}, {"examples": 6})


def predictor(kind: str, seed: int, **settings: Any) -> Predictor:
    torch.manual_seed(seed)
    model_class = {**KINDS, "regression": SCORE}[kind][0]
    config = tiny_config("bert", num_labels={"spans": 2, "regression": 1}.get(kind, 3), **settings)
    module = importlib.import_module(f"finetune.task_types.{kind}")
    return module.Objective(model_class.from_config(config, attn_implementation=NAME).eval())


def batch_for(kind: str) -> PackedBatch:
    _, targets, counts = {**KINDS, "regression": SCORE}[kind]
    tensors = {name: torch.tensor(value) for name, value in targets.items()}
    batch = batch_of(LENGTHS)
    return replace(batch, targets=tensors, counts={**batch.counts, **counts})


def distributions(kind: str, logits: Tensor) -> list[list[Tensor]]:
    """For each thing that is counted, the logits of each distribution it has."""
    if kind == "classification" or kind == "tokens":
        return [[row] for row in logits]
    if kind == "multilabel":
        return [[torch.stack([value, torch.zeros(())]) for value in row] for row in logits]
    if kind == "choice":
        return [[part] for part in logits.split([3, 1, 2])]
    return [[*part.unbind(1)] for part in logits.split(LENGTHS)]


def plain(kind: str, logits: Tensor, taught: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """T^2 times soft cross-entropy and the teacher's entropy, summed over what is counted, one by one."""
    cross, entropy = torch.zeros(()), torch.zeros(())
    for mine, theirs in zip(distributions(kind, logits), distributions(kind, taught), strict=True):
        for x, y in zip(mine, theirs, strict=True):
            target = (y / temperature).softmax(-1)
            cross = cross + F.cross_entropy((x / temperature)[None], target[None]) / len(mine)
            entropy = entropy - (target * target.log()).sum() / len(mine)
    return temperature**2 * cross, temperature**2 * entropy


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_soft_answers_of_every_kind_of_task(kind: str, temperature: float) -> None:
    """The gradient is that of soft cross-entropy, the value less by the teacher's entropy; 0 where both agree."""
    student, teacher, batch = predictor(kind, 0), predictor(kind, 1), batch_for(kind)
    logits = student.logits(batch).detach().requires_grad_(True)
    taught = teacher.logits(batch).detach()
    found = soft_cross_entropy(student, logits, taught, batch, temperature)
    assert found is not None
    cross, entropy = plain(kind, logits, taught, temperature)
    torch.testing.assert_close(found, cross - entropy, rtol=1e-4, atol=1e-5)
    assert found > 1e-3
    torch.testing.assert_close(
        torch.autograd.grad(found, logits)[0], torch.autograd.grad(cross, logits)[0], rtol=1e-4, atol=1e-5
    )
    same = soft_cross_entropy(student, taught, taught, batch, temperature)
    assert same is not None
    assert abs(same.item()) < 1e-6


def test_an_answer_that_a_teacher_is_sure_of_is_a_label() -> None:
    """Soft and hard answers are of one size: beside a teacher that is certain of the labels both losses are one."""
    for kind in KINDS:
        student, batch = predictor(kind, 0), batch_for(kind)
        logits, labels = student.logits(batch), batch.targets.get("labels")
        sure = torch.full_like(logits, -100.0)
        if kind == "spans":
            sure[batch.input.first_rows[:, None] + batch.targets["spans"], torch.arange(2)] = 100
        elif kind == "choice":
            sure[torch.tensor([2, 3, 5])] = 100
        else:
            assert labels is not None
            sure = 200.0 * (labels if kind == "multilabel" else F.one_hot(labels, 3)) - 100
        hard = next(iter(student.terms(logits, batch).values())).total
        soft = soft_cross_entropy(student, logits, sure, batch, 1.0)
        torch.testing.assert_close(soft, hard, rtol=1e-4, atol=1e-5)


def test_classification_is_hintons() -> None:
    """T^2 times torch's divergence, and TinyBERT's released loss once it is multiplied by the number of labels."""
    student, batch = predictor("classification", 0), batch_for("classification")
    logits, taught = torch.randn(2, 6, 3).unbind()
    soft = soft_cross_entropy(student, logits, taught, batch, 3.0)
    expected = 9 * F.kl_div((logits / 3).log_softmax(-1), (taught / 3).softmax(-1), reduction="sum")
    torch.testing.assert_close(soft, expected)
    released = (-taught.softmax(-1) * logits.log_softmax(-1)).mean()
    entropy = -(taught.softmax(-1) * taught.log_softmax(-1)).sum()
    one = soft_cross_entropy(student, logits, taught, batch, 1.0)
    assert one is not None
    torch.testing.assert_close((one + entropy) / 6, released * 3)


def both(kind: str, method: Any, **config: Any) -> Imitation:
    return method.task(method.AnswersConfig(**config), predictor(kind, 0), Teacher(predictor(kind, 1)))


@pytest.mark.parametrize("kind", [*KINDS, "regression"])
def test_a_student_answers_as_without_its_teacher(kind: str) -> None:
    """Logits, outputs and the task's own numbers; the loss is what the weights say."""
    objective, batch = both(kind, distilbert, hard=0.3, soft=0.7), batch_for(kind)
    student = objective.student
    logits = objective.logits(batch)
    torch.testing.assert_close(logits, student.logits(batch), rtol=0, atol=0)
    torch.testing.assert_close(objective.outputs(logits, batch), student.outputs(logits, batch), rtol=0, atol=0)
    terms, own = objective(batch), student.terms(logits, batch)
    assert terms.keys() == {*own, "soft"}
    for name, term in own.items():
        torch.testing.assert_close(terms[name].total, term.total)
    name = next(iter(own))
    count = batch.counts[own[name].count]
    assert terms["soft"].count == own[name].count
    expected = (0.3 * own[name].total + 0.7 * terms["soft"].total) / count
    torch.testing.assert_close(share_of_loss(terms, batch.counts), expected)
    assert objective.exported() is student.model


def test_a_score_has_no_distribution() -> None:
    """DistilBERT's: squared error towards the teacher's score; TinyBERT's: the labels alone, as in its paper."""
    batch = batch_for("regression")
    objective = both("regression", distilbert)
    logits, taught = objective.logits(batch), objective.teacher.module.logits(batch)
    assert soft_cross_entropy(objective.student, logits, taught, batch, 2.0) is None
    terms = objective(batch)
    torch.testing.assert_close(terms["soft"].total, (logits - taught).square().sum())
    assert (terms["squared_error"].weight, terms["soft"].weight) == (0.5, 0.5)
    tiny = both("regression", tinybert)
    assert (tiny.hard, tiny.soft) == (1, 0)
    others = both("classification", tinybert)
    assert (others.hard, others.soft, others.temperature) == (0, 1, 1)


def test_only_the_student_is_trained_and_saved() -> None:
    objective = both("classification", distilbert)
    state = objective.state_dict()
    assert {name.removeprefix("student.model.") for name in state} == {*objective.student.model.state_dict()}
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state), "none of them twice"
    teachers = {id(parameter) for parameter in objective.teacher.module.parameters()}
    optimizer = build_optimizer(OptimSection(), objective)
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in objective.student.model.parameters()}
    assert not trained & teachers

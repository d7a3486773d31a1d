"""A teacher stays as it is, and every parameter of the student that is trained has something to learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bertillery.engine.batch import PackedBatch
from bertillery.engine.loop import share_of_loss
from bertillery.engine.objective import Objective
from bertillery.engine.optim import OptimSection, build_optimizer
from bertillery.models.encoders import encode
from distill.objectives import distilbert, minilm, tinybert
from tests.distill.pairs import DROPOUTS, masked, student_of, teacher_of

METHODS: dict[str, tuple[Any, dict[str, Any]]] = {
    "distilbert": (distilbert, {}),
    "cosine": (distilbert, {"kl": 0, "mlm": 0}),
    "tinybert": (tinybert, {}),
    "minilm": (minilm, {"relation_heads": 8}),
}


def made(name: str, of: str = "bert", kind: str = "bert", **settings: Any) -> Objective:
    method, config = METHODS[name]
    teacher = teacher_of(kind, words=method.MASKED_WORDS, **settings)
    student = student_of(teacher, words=method.MASKED_WORDS, type=of, num_hidden_layers=3)
    return method.build(method.Config(**config), student, teacher)


def learned(objective: Objective, batch: PackedBatch) -> None:
    share_of_loss(objective(batch), batch.counts).backward()


@pytest.mark.parametrize("name", METHODS)
def test_a_teacher_is_frozen_awake_and_out_of_sight(name: str) -> None:
    """Whatever its dropouts are and whoever calls ``train``: no gradients, no dropout, nothing to save or to move."""
    objective: Any = made(name, **DROPOUTS)
    teacher, batch = objective.teacher, masked()
    before = {key: tensor.clone() for key, tensor in teacher.module.state_dict().items()}
    objective.train()
    assert objective.student.training
    assert not any(module.training for module in teacher.module.modules())
    one, two = objective(batch), objective(batch)
    assert all(torch.equal(one[each].total, two[each].total) for each in one), "the student has no dropout"
    assert torch.equal(encode(teacher.module, batch.input), encode(teacher.module, batch.input))
    optimizer = build_optimizer(OptimSection(), objective)
    learned(objective, batch)
    optimizer.step()
    assert all(parameter.grad is None for parameter in teacher.module.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.module.parameters())
    assert all(torch.equal(before[key], tensor) for key, tensor in teacher.module.state_dict().items())
    hidden = {id(parameter) for parameter in teacher.module.parameters()}
    assert not hidden & {id(parameter) for parameter in objective.parameters()}
    assert not hidden & {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert not [key for key in objective.state_dict() if "teacher" in key]


@pytest.mark.parametrize("kind", ["bert", "albert", "electra", "roberta"])
@pytest.mark.parametrize("of", ["bert", "distilbert"])
@pytest.mark.parametrize("name", METHODS)
def test_whatever_is_trained_gets_a_gradient(name: str, of: str, kind: str) -> None:
    """Processes that train together wait for the gradient of every parameter that asks for one."""
    objective = made(name, of, kind)
    learned(objective, masked())
    waiting = [key for key, p in objective.named_parameters() if p.requires_grad and (p.grad is None)]
    assert not waiting
    still = {key for key, p in objective.named_parameters() if not p.requires_grad}
    expected: dict[str, set[str]] = {
        "distilbert": set(),
        "cosine": {"vocab", "cls"},
        "tinybert": {"pooler"},
        "minilm": {"pooler", "output", "intermediate", "out_lin", "sa_layer_norm", "ffn", "output_layer_norm"},
    }
    assert all(
        any(part.split("_")[0] in expected[name] or part in expected[name] for part in key.split(".")) for key in still
    )
    assert not [key for key in still if "layer.0." in key]


def test_seconds_are_those_of_training() -> None:
    objective, batch = made("distilbert"), masked()
    assert objective.seconds_beside() == {"teacher": 0.0}
    learned(objective, batch)
    assert objective.seconds_beside()["teacher"] > 0
    with torch.no_grad():
        objective(batch)
    assert objective.seconds_beside() == {"teacher": 0.0}
    assert objective.flops(batch) > 0

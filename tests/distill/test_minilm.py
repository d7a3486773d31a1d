"""MiniLMv2: relations of queries, keys and values, beside a sequence-by-sequence computation with stock models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from bertillery.config.section import ConfigError
from bertillery.engine.batch import PackedBatch
from distill.objectives.minilm import Config, build, divergence
from tests.distill.pairs import stock, student_of, teacher_of, values
from tests.models.families import LENGTHS, batch_of
from tests.models.test_relations import projections


def relations_of(model: Any, layer: int, batch: PackedBatch, heads: int) -> dict[str, list[Tensor]]:
    """Raw relations (heads, n, n) of each sequence by itself."""
    found = projections(stock(model), batch)
    lengths = batch.input.offsets.diff().tolist()
    result: dict[str, list[Tensor]] = {}
    for part, name in (("q", "query"), ("k", "key"), ("v", "value")):
        rows = [
            rows[:n].unflatten(1, (heads, -1)).transpose(0, 1)
            for rows, n in zip(found[part][layer], lengths, strict=True)
        ]
        result[name] = [x @ x.transpose(1, 2) / x.shape[-1] ** 0.5 for x in rows]
    return result


@pytest.mark.parametrize(
    ("kind", "section", "config", "layer", "heads"),
    [
        ("bert", {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}, {"relation_heads": 8}, 3, 8),
        ("bert", {"type": "distilbert", "hidden_size": 12}, {"relation_heads": 4, "layer": 2}, 2, 4),
        ("albert", {"hidden_size": 30, "num_attention_heads": 5}, {"relation_heads": 6, "layer": 1}, 1, 6),
        ("electra", {"hidden_size": 48}, {"relation_heads": 24}, 3, 24),
    ],
)
def test_losses_are_those_of_each_sequence_by_itself(
    kind: str, section: dict[str, Any], config: dict[str, int], layer: int, heads: int
) -> None:
    """Whatever the widths, heads and layers of the two; means over tokens and relation heads."""
    teacher, batch = teacher_of(kind, words=False), batch_of(LENGTHS)
    objective = build(Config(**config), student_of(teacher, words=False, **section), teacher).eval()  # pyright: ignore
    mine = relations_of(objective.student, -1, batch, heads)
    theirs = relations_of(teacher.module, layer - 1, batch, heads)
    found = values(objective, batch)
    for part in ("query", "key", "value"):
        total = 0.0
        for scores, targets in zip(mine[part], theirs[part], strict=True):
            total += F.kl_div(scores.log_softmax(-1), targets.softmax(-1), reduction="sum").item()
        expected = total / heads / batch.input.num_tokens
        assert found[part].item() == pytest.approx(expected, rel=1e-4), part
        assert expected > 1e-3


def test_a_teacher_has_nothing_to_learn_from_itself() -> None:
    """With 4 times its heads where nothing is said, and its last layer."""
    teacher = teacher_of(words=False, hidden_size=32)
    objective = build(Config(), copy.deepcopy(teacher.module).requires_grad_(True), teacher).eval()
    assert (objective.layer, objective.heads) == (3, 16)
    found = values(objective, batch_of(LENGTHS))
    assert [abs(value.item()) <= 1e-6 for value in found.values()] == [True] * 3


def test_padding_does_not_matter() -> None:
    """What stands in cells that are no tokens changes neither sum nor gradient."""
    torch.manual_seed(0)
    scores, targets = torch.randn(2, 3, 4, 5, 5).unbind()
    real = torch.arange(5) < torch.tensor([5, 2, 3])[:, None]
    cells = (real[:, None, :, None] & real[:, None, None, :]).expand_as(scores)
    found = []
    for filler in (0.0, 1e4):
        given = scores.where(cells, torch.tensor(filler)).requires_grad_(True)
        total = divergence(given, targets.where(cells, torch.tensor(-filler)), real)
        total.backward()
        assert given.grad is not None
        assert not given.grad[~cells].any()
        found.append((total.detach(), given.grad))
    torch.testing.assert_close(found[0], found[1])
    alone = sum(
        F.kl_div(s[:, :n, :n].log_softmax(-1), t[:, :n, :n].softmax(-1), reduction="sum")
        for s, t, n in zip(scores, targets, (5, 2, 3), strict=True)
    )
    torch.testing.assert_close(found[0][0], torch.as_tensor(alone))


def test_what_cannot_be_related_is_refused() -> None:
    teacher = teacher_of(words=False)
    student = student_of(teacher, words=False, hidden_size=20)
    with pytest.raises(ConfigError, match=r"16 do not divide the width 24 \(teacher\) and 20 \(student\)"):
        build(Config(), student, teacher)
    with pytest.raises(ConfigError, match=r"12 do not divide the width 20 \(student\); give a common divisor"):
        build(Config(relation_heads=12), student, teacher)
    with pytest.raises(ConfigError, match=r"objective.layer: given 4; the teacher has 3 layers"):
        build(Config(relation_heads=4, layer=4), student, teacher)

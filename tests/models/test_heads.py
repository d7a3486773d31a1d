from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from bertillery.models.encoders import FAMILIES
from bertillery.models.heads import begin_at, best_within, draw_head, head_parameters, log_softmax_within
from tests.models.families import tiny_config


@pytest.mark.parametrize("kind", FAMILIES)
def test_layer_norms_keep_their_ones_whatever_they_are_called(kind: str) -> None:
    """All else is drawn within two deviations, around 0, and biases are 0."""
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(tiny_config(kind, initializer_range=0.02))
    for parameter in model.parameters():
        nn.init.constant_(parameter, 7.0)
    norms = [module for module in model.modules() if isinstance(module, nn.LayerNorm)]
    for module in norms:
        module.reset_parameters()
    draw_head(model, [name for name, _ in model.named_parameters()])
    kept = {parameter for module in norms for parameter in module.parameters()}
    assert all((module.weight == 1).all() and (module.bias == 0).all() for module in norms)
    drawn = {name: each for name, each in model.named_parameters() if each not in kept}
    assert len(drawn) > 20
    for name, each in drawn.items():
        assert each.abs().max() <= (0 if name.endswith("bias") else 0.04), name
        assert name.endswith("bias") or each.std() > 0.01, name


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_head_for_a_score_begins_where_it_is_told(kind: str) -> None:
    model = AutoModelForSequenceClassification.from_config(tiny_config(kind, initializer_range=0.02, num_labels=1))
    draw_head(model, head_parameters(model))
    begin_at(model, 3.5)
    ids = torch.randint(5, 90, (4, 9), generator=torch.Generator().manual_seed(0))
    assert (model.eval()(ids).logits - 3.5).abs().max() < 0.5


def test_softmax_within_is_the_softmax_of_each_owner() -> None:
    """Value and gradient, also where the owners' logits are far apart."""
    torch.manual_seed(0)
    sizes, offsets = [3, 1, 40, 7], [0.0, 500.0, -500.0, 9.0]
    owner = torch.arange(4).repeat_interleave(torch.tensor(sizes))
    for width in ((), (2,)):
        parts = [torch.randn(n, *width) + offset for n, offset in zip(sizes, offsets, strict=True)]
        logits = torch.cat(parts).requires_grad_()
        alone = torch.cat([part.log_softmax(0) for part in logits.split(sizes)])
        got = log_softmax_within(logits, owner, 4)
        torch.testing.assert_close(got, alone)
        weights = torch.randn_like(got)
        (wanted,) = torch.autograd.grad((alone * weights).sum(), logits)
        (given,) = torch.autograd.grad((got * weights).sum(), logits)
        torch.testing.assert_close(given, wanted)


def test_best_within_is_the_first_of_the_best() -> None:
    logits = torch.tensor([1.0, 3.0, 3.0, -2.0, 0.0, 0.0])
    owner = torch.tensor([0, 0, 0, 1, 2, 2])
    assert best_within(logits, owner, 3).tolist() == [1, 3, 4]

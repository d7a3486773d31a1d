from __future__ import annotations

import pytest
import torch

from bertillery.models.init import truncated_normal_


@pytest.mark.parametrize("std", [0.02, 1.0])
def test_draws_beyond_two_deviations_are_drawn_again(std: float) -> None:
    """All others stay: the numbers are those of ``normal_``, in every version of torch."""
    torch.manual_seed(5)
    plain = torch.empty(300, 400).normal_(0.0, std)
    torch.manual_seed(5)
    found = truncated_normal_(torch.empty(300, 400), std)
    inside = plain.abs() <= 2 * std
    assert torch.equal(found[inside], plain[inside])
    assert 0.043 < 1 - inside.float().mean() < 0.048, "4.55 % of a normal distribution"
    again = found[~inside]
    assert again.abs().max() <= 2 * std
    assert 0.87 < found.std() / std < 0.89, "0.8796 of the deviation that was asked for"
    assert 0.86 < again.std() / std < 0.90
    assert abs(again.mean()) < 0.05 * std


def test_parameters_are_drawn_in_place() -> None:
    weight = torch.nn.Linear(3, 4).weight
    assert truncated_normal_(weight, 0.5) is weight
    assert weight.requires_grad
    assert weight.grad_fn is None
    assert truncated_normal_(torch.empty(5, device="meta"), 1.0).is_meta

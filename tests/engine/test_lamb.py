"""LAMB, with the expected values of ALBERT's optimizer (fidelity, 2.4 and 2.8)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bertillery.engine.optim import Lamb, OptimSection, build_optimizer, learning_rate
from bertillery.run.checkpoint import load_checkpoint, save_checkpoint


def section(**more: object) -> OptimSection:
    return OptimSection.model_validate({"algorithm": "lamb", "learning_rate": 0.01, "schedule": "bert", **more})


def update(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0) -> dict[str, Tensor]:
    """One step with random gradients; how each parameter moved."""
    torch.manual_seed(seed)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return {name: parameter.detach() - before[name] for name, parameter in model.named_parameters()}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(7, 5)
        self.zero = nn.Linear(5, 5)
        self.full_layer_layer_norm = nn.LayerNorm(5)
        nn.init.zeros_(self.zero.weight)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_a_tensor_moves_by_the_rate_times_its_norm(scale: float) -> None:
    """However large or small it is: the ratio has no bounds."""
    model = Block()
    with torch.no_grad():
        model.dense.weight.mul_(scale)
    norm = model.dense.weight.norm().item()
    moved = update(model, build_optimizer(section(weight_decay=0.0), model))
    assert moved["dense.weight"].norm().item() == pytest.approx(0.01 * norm, rel=1e-3)


def test_exempt_and_zero_tensors_move_by_the_plain_update() -> None:
    """Without correction the first u is 0.1 g / (sqrt(0.001) |g|) for each number."""
    model = Block()
    moved = update(model, build_optimizer(section(epsilon=1e-12), model))
    for name in ("dense.bias", "full_layer_layer_norm.weight", "full_layer_layer_norm.bias", "zero.weight"):
        torch.testing.assert_close(moved[name].abs(), torch.full_like(moved[name], 0.0316228), rtol=1e-3, atol=0)


def test_a_gradient_of_zero_moves_nothing_that_is_not_decayed() -> None:
    model = Block()
    optimizer = build_optimizer(section(weight_decay=0.0), model)
    before = model.dense.weight.detach().clone()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert torch.equal(model.dense.weight, before)


def test_lamb_is_the_original_formula() -> None:
    """Against the update written out, over steps enough for bias correction, a bound or coupled decay to show."""
    torch.manual_seed(0)
    weight = nn.Parameter(5 * torch.randn(6, 9))
    optimizer = Lamb([{"params": [weight], "weight_decay": 0.01}], lr=1e-2, betas=(0.9, 0.999), eps=1e-6)
    w, m, v = weight.detach().double(), torch.zeros(6, 9).double(), torch.zeros(6, 9).double()
    for step in range(200):
        gradient = torch.randn(6, 9) + 0.3
        weight.grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = rate = 1e-2 * (1 - step / 200)
        optimizer.step()
        m = 0.9 * m + 0.1 * gradient
        v = 0.999 * v + 0.001 * gradient**2
        u = m / (v.sqrt() + 1e-6) + 0.01 * w
        w = w - rate * (w.norm() / u.norm()) * u
    torch.testing.assert_close(weight.detach().double(), w, rtol=1e-4, atol=1e-5)


def test_published_learning_rates() -> None:
    given = {"learning_rate": 0.00176, "warmup": 3125}
    rate = learning_rate(section(**given), 125_000)
    assert [rate(0), rate(3125), rate(62_500), rate(125_000)] == pytest.approx([0, 0.001716, 0.00088, 0])


def test_moments_survive_a_checkpoint_bit_by_bit(tmp_path: Path) -> None:
    model = Block()
    optimizer = build_optimizer(section(), model)
    for seed in range(3):
        update(model, optimizer, seed)
    path = save_checkpoint(tmp_path, step=3, model=model, optimizer=optimizer, state={}, config="{}\n")
    resumed = Block()
    other = build_optimizer(section(), resumed)
    load_checkpoint(path, model=resumed, optimizer=other)
    expected, found = update(model, optimizer, 9), update(resumed, other, 9)
    assert all(torch.equal(expected[name], found[name]) for name in expected)

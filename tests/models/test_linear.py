"""Linear layers in bfloat16 on a CPU: the products are torch's, and of few shapes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.pytorch_utils import Conv1D

from bertillery.models.layers import linear
from bertillery.models.layers.linear import Linear, TransposedLinear, kernel_rows

KINDS = [(nn.Linear, Linear), (Conv1D, TransposedLinear)]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def results(layer: nn.Module, x: Tensor, *, bf16: bool) -> list[Tensor]:
    """Output, and gradients of input, weight and bias, of a loss that weighs all elements."""
    layer.zero_grad()
    x = x.detach().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        out = layer(x)
    weights = torch.linspace(-1, 1, out.numel()).view(out.shape)
    (out.float() * weights).sum().backward()
    return [found.clone() for found in (out, x.grad, *(each.grad for each in layer.parameters())) if found is not None]


@pytest.mark.parametrize(("stock", "ours"), KINDS)
@pytest.mark.parametrize("shape", [(1, 37, 24), (48, 24), (2, 3, 5, 24), (1, 24)])
def test_outputs_and_gradients_are_torchs(stock: Any, ours: Any, shape: tuple[int, ...]) -> None:
    """As exactly as in bfloat16; in float32 to the bit."""
    layer = stock(16, 24) if stock is Conv1D else stock(24, 16)
    x = torch.randn(shape)
    exact, theirs = (results(layer, x, bf16=bf16) for bf16 in (False, True))
    layer.__class__ = ours
    assert all(map(torch.equal, exact, results(layer, x, bf16=False)))
    mine = results(layer, x, bf16=True)
    assert [(each.shape, each.dtype) for each in mine] == [(each.shape, each.dtype) for each in theirs]
    for found, other, wanted in zip(mine, theirs, exact, strict=True):
        error, usual = (found - wanted).norm() / wanted.norm(), (other - wanted).norm() / wanted.norm()
        assert error < max(1.5 * usual, 1e-3)


def test_a_weight_that_is_not_trained_gets_no_gradient() -> None:
    layer, x = Linear(24, 16, bias=False), torch.randn(5, 24, requires_grad=True)
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        layer(x).float().sum().backward()
    assert layer.weight.grad is None
    assert x.grad is not None


class Products(TorchDispatchMode):
    """The shapes that are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: set[tuple[Any, ...]] = set()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in ("aten::mm", "aten::addmm", "aten::linear", "mkldnn::_linear_pointwise"):
            self.names.add(func.name())
            self.shapes.add(tuple(x.shape for x in args if isinstance(x, Tensor)))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("kind", "kernels"), [(nn.Linear, 100), (Linear, 5)])
def test_a_hundred_numbers_of_tokens_need_few_kernels(kind: type[nn.Linear], kernels: int) -> None:
    """For each of the three products."""
    layer = kind(24, 16)
    with Products() as products:
        for number in range(1024, 1224, 2):
            with torch.autocast("cpu", torch.bfloat16):
                out = layer(torch.ones(1, number, 24, requires_grad=True))
            out.sum().backward()
    assert len(products.shapes) == 3 * kernels


def test_a_product_begins_with_its_bias() -> None:
    """It is neither written to all of the result first, nor rounded to bfloat16; where torch cannot, it is rounded."""
    layer, x = Linear(24, 16), torch.randn(32, 24)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Products() as products:
        layer(x)
    assert products.names == {"mkldnn::_linear_pointwise" if linear.WITH_BIAS else "aten::addmm"}


@pytest.mark.parametrize(("stock", "ours"), KINDS)
def test_a_torch_without_that_product(stock: Any, ours: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = stock(16, 24) if stock is Conv1D else stock(24, 16), torch.randn(37, 24)
    layer.__class__ = ours
    found = results(layer, x, bf16=True)
    monkeypatch.setattr(linear, "WITH_BIAS", None)
    for one, other in zip(found, results(layer, x, bf16=True), strict=True):
        torch.testing.assert_close(other, one, rtol=2**-7, atol=1e-2)


def test_rows_that_are_filled_up() -> None:
    assert [kernel_rows(number) for number in (1, 16, 17, 512, 513, 2048, 2049)] == [16, 16, 32, 512, 544, 2048, 2176]
    for number in range(256, 20_000):
        assert number <= kernel_rows(number) <= number * 17 / 16

"""Compiled layers compute the same, and are compiled once whatever the batches' sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from bertillery.models.layers import gpu_attention
from bertillery.run.device import compile_layers
from pretrain.model import ModelSection
from pretrain.objectives import mlm
from tests.models.test_chunks import passed
from tests.pretrain.test_objectives import STILL, TINY, make


def test_losses_and_gradients_are_those_of_plain_layers() -> None:
    objective, source = make(mlm, ModelSection(**{**TINY.model_dump(by_alias=True), "num_hidden_layers": 1}))
    plan = source.examples(0, 0)
    batches = [source.collate(plan[:size]) for size in (3, 5, 8, 4)]
    names = list(objective.state_dict())
    plain = [passed(objective.train(), batch) for batch in batches]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(objective)
    for turn, (batch, (terms, gradient)) in enumerate(zip(batches, plain, strict=True)):
        found, other = passed(objective, batch)
        torch.testing.assert_close(found, terms, rtol=1e-5, atol=1e-5)
        assert (other - gradient).norm() / gradient.norm() < 1e-5
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
        if turn == 0:
            first = graphs
    assert 0 < first == graphs, "compiled again for another size"
    assert list(objective.state_dict()) == names


@torch.library.custom_op("bertillery_tests::opaque", mutates_args=())
def opaque(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    """No attention, but as closed to the compiler as a kernel is."""
    return query * scale + key - value


@opaque.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, starts: Tensor, longest: int, scale: float) -> Tensor:
    return torch.empty_like(query)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.scale = inputs[-1]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return gradient * ctx.scale, gradient, -gradient, None, None, None


opaque.register_autograd(_backward, setup_context=_keep)


def test_layers_with_a_kernel_of_a_gpu_are_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which kernel there is, is no part of it, and neither are the padded buckets of a batch."""
    monkeypatch.setattr(gpu_attention, "choose", lambda *_, **__: "varlen")
    monkeypatch.setattr(gpu_attention, "_looked_up", lambda device: (torch._dynamo.graph_break() is None, True))
    monkeypatch.setattr(
        gpu_attention,
        "varlen_attn",
        lambda q, k, v, starts, _, longest, __, scale, window_size: opaque(q, k, v, starts, longest, scale),
    )
    objective, source = make(mlm, STILL)
    plan = source.examples(0, 0)
    batches = [source.collate(plan[:size]) for size in (3, 5, 8, 4, 30)]
    assert len({len(batch.input.layout.shapes) for batch in batches}) > 1
    assert len({batch.input.layout.longest for batch in batches}) > 1
    plain = [passed(objective.train(), batch) for batch in batches]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compile_layers(objective)
    for batch, (terms, gradient) in zip(batches, plain, strict=True):
        found, other = passed(objective, batch)
        torch.testing.assert_close(found, terms, rtol=1e-5, atol=1e-5)
        assert (other - gradient).norm() / gradient.norm() < 1e-5
    assert not torch._dynamo.utils.counters["graph_break"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


@pytest.mark.skipif(gpu_attention.varlen_attn is None, reason="this torch has no varlen_attn with a scale")
def test_the_librarys_varlen_does_not_break_a_graph() -> None:
    """As far as a CPU can tell: it is traced, not run."""
    calls: list[str] = []

    def traced(graph: Any, inputs: Any) -> Any:
        calls.extend(str(node.target) for node in graph.graph.nodes if "varlen" in str(node.target))
        return lambda *tensors: (next(each for each in tensors if isinstance(each, Tensor) and each.ndim == 3),)

    compiled = torch.compile(gpu_attention.by_varlen, backend=traced, dynamic=True, fullgraph=True)
    for lengths in ([3, 4], [9, 1, 5]):
        rows = torch.randn(sum(lengths), 2, 16, dtype=torch.bfloat16)
        starts = torch.tensor([0, *lengths]).cumsum(0).int()
        found = compiled(rows, rows, rows, (starts, starts), (max(lengths),) * 2, 0.25, causal=False, dropout=0.0)
        assert found.shape == rows.shape
    assert len(calls) == 1, calls

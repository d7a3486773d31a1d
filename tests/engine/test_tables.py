"""Gradients of embedding tables by rows: the update of dense ones, without passes over the table."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bertillery.engine.optim import OptimSection, build_optimizer, clip_gradients
from bertillery.engine.tables import TableGradients, table_gradients

ROWS, WIDTH = 50, 4
CPU = torch.device("cpu")


class Model(nn.Module):
    """The mean of the rows, through a layer; ``tied`` predicts words with the table."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.layer = nn.Embedding(ROWS, WIDTH, padding_idx=0), nn.Linear(WIDTH, ROWS if tied else 1)
        if tied:
            self.layer.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.layer(self.table(ids)).square().sum()


@pytest.fixture
def model() -> Model:
    return Model()


BATCHES = [torch.tensor(ids) for ids in ([1, 2, 2, 0], [7], [2, 49, 7], [0, 0])]


def trained(algorithm: str, most: float, clipping: str, *, by_rows: bool, tied: bool = False) -> list[Tensor]:
    """Norms and, after each step, all weights; every step has two micro-batches."""
    model = Model(tied=tied)
    section = OptimSection.model_validate({"algorithm": algorithm, "learning_rate": 0.1})
    optimizer, found = build_optimizer(section, model), list[Tensor]()
    with table_gradients(model, CPU if by_rows else torch.device("meta")) as tables:
        for ids, more in zip(BATCHES, BATCHES[1:] + BATCHES[:1], strict=True):
            for part in (ids, more):
                model(part).backward()
            tables.collect()
            assert model.table.weight.grad is not None
            assert model.table.weight.grad.is_sparse == (by_rows and not tied)
            found.append(clip_gradients([*model.parameters()], most, clipping))
            with tables.dense():
                optimizer.step()
            optimizer.zero_grad()
            found += [each.detach().clone() for each in model.parameters()]
    return found


@pytest.mark.parametrize("algorithm", ["bert_adam", "adamw", "lamb"])
@pytest.mark.parametrize(("most", "clipping"), [(1e9, "global"), (0.1, "global"), (0.1, "tensor")])
def test_the_update_is_that_of_dense_gradients(algorithm: str, most: float, clipping: str) -> None:
    """To the bit where nothing is clipped; the norm is summed in another order."""
    mine, theirs = (trained(algorithm, most, clipping, by_rows=by_rows) for by_rows in (True, False))
    for found, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, expected)
        if most == 1e9 and found.ndim and algorithm != "lamb":
            assert torch.equal(found, expected)


@pytest.mark.parametrize("algorithm", ["bert_adam", "lamb"])
def test_a_table_that_predicts_words_gets_its_rows_too(algorithm: str) -> None:
    mine, theirs = (trained(algorithm, 0.1, "global", by_rows=by_rows, tied=True) for by_rows in (True, False))
    for found, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(found, expected)


def test_two_look_ups_in_one_table() -> None:
    """As a generator and a discriminator that share it."""
    results = []
    for device in (CPU, torch.device("meta")):
        first, second = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
        with torch.no_grad():
            first.weight.copy_(torch.arange(ROWS * WIDTH).view(ROWS, WIDTH))
        second.weight = first.weight
        with table_gradients(nn.ModuleList([first, second]), device) as tables:
            (first(BATCHES[0]).sum() + 2 * second(BATCHES[2]).sum()).backward()
            tables.collect()
            with tables.dense():
                assert first.weight.grad is not None
                results.append(first.weight.grad.clone())
    assert torch.equal(*results)


def test_a_table_that_was_moved_is_read_where_it_is(model: Model) -> None:
    with table_gradients(model, CPU):
        model.table.weight.data = torch.zeros(ROWS, WIDTH)
        assert not model.table(BATCHES[0]).any()
        model.table(BATCHES[0]).sum().backward()
        assert model.table.weight.grad is not None


def test_a_copy_reads_its_own_table(model: Model) -> None:
    with table_gradients(model, CPU):
        copied = copy.deepcopy(model)
        with torch.no_grad():
            copied.table.weight.fill_(3)
        assert (copied.table(BATCHES[1]) == 3).all()
        assert not (model.table(BATCHES[1]) == 3).any()


def test_one_loop_at_a_time(model: Model) -> None:
    with table_gradients(model, CPU), pytest.raises(RuntimeError, match="another loop"), table_gradients(model, CPU):
        pass


def test_afterwards_the_model_is_as_it_was(model: Model) -> None:
    with table_gradients(model, CPU):
        assert type(model.table) is not nn.Embedding
    assert type(model.table) is nn.Embedding
    model(BATCHES[0]).backward()
    assert model.table.weight.grad is not None
    assert not model.table.weight.grad.is_sparse


class Passes(TorchDispatchMode):
    """Operations that make, or change, something of the size of the table."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and not result.is_sparse and result.shape == (ROWS, WIDTH):
            self.operations.append(func.name())
        return result


def test_no_pass_over_the_table_but_the_optimizers(model: Model) -> None:
    optimizer = build_optimizer(OptimSection(), model)

    def step(tables: TableGradients) -> None:
        model(BATCHES[2]).backward()
        tables.collect()
        clip_gradients([*model.parameters()], 0.01, "global")
        with tables.dense():
            optimizer.step()
        optimizer.zero_grad()

    with table_gradients(model, CPU) as tables:
        step(tables)
        with Passes() as passes:
            step(tables)
    writes = [name for name in passes.operations if not name.startswith(("aten::view", "aten::detach", "aten::alias"))]
    assert writes == ["aten::index_copy_", "aten::index_fill_.int_Scalar"]  # of single rows


def test_small_gradients_are_not_multiplied_by_one(model: Model) -> None:
    model(BATCHES[0]).backward()
    before = [each.grad._version for each in model.parameters() if each.grad is not None]
    clip_gradients([*model.parameters()], 1e9, "global")
    assert [each.grad._version for each in model.parameters() if each.grad is not None] == before
    clip_gradients([*model.parameters()], 1e-9, "global")
    assert [each.grad._version for each in model.parameters() if each.grad is not None] != before

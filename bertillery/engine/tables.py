"""Gradients of embedding tables, of which a step reads few rows.

The gradient of a look-up is zero but for the rows that were read. Filling a table with zeros, adding it to what else
the table learns, its norm, and scaling it down are a pass each over all of it, and on a CPU, with short texts, they can
cost more than the model. Where one process trains on a CPU, look-ups therefore keep the gradients of their rows alone.
These are added to the gradient of a table that also predicts words; that of another table stays like this until the
optimizer asks for all of it. The update is that of a dense gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


class LookUp(nn.Embedding):
    """Drop-in for ``nn.Embedding`` whose gradient is that of :attr:`alias`, of the rows alone."""

    alias: Tensor
    """The weight's numbers, in the same memory, as a tensor with a gradient of its own."""

    def forward(self, input: Tensor) -> Tensor:
        """Rows (..., H) of the table for ``input`` (...)."""
        if self.alias.data_ptr() != self.weight.data_ptr() or not torch.is_grad_enabled():  # moved, or not in training
            return super().forward(input)
        return F.embedding(input, self.alias, self.padding_idx, sparse=True)


class TableGradients:
    """What look-ups in some tables learned: of the rows that were read alone."""

    def __init__(self, tables: Sequence[LookUp]) -> None:
        self._tables = tables
        self._dense: dict[Tensor, Tensor] = {}

    def collect(self) -> None:
        """Give the tables the gradients of their look-ups, after the backward passes of a step."""
        for table in self._tables:
            rows, table.alias.grad = table.alias.grad, None
            if rows is None:
                continue
            if table.weight.grad is None:
                table.weight.grad = rows
            elif table.weight.grad.is_sparse:
                table.weight.grad = table.weight.grad + rows
            else:
                rows = rows.coalesce()
                table.weight.grad.index_add_(0, rows.indices()[0], rows.values())

    @contextmanager
    def dense(self) -> Iterator[None]:
        """What the optimizer reads within are dense gradients. Their memory stays, all zero, for the next step."""
        filled: list[tuple[Tensor, Tensor]] = []
        for weight in [table.weight for table in self._tables]:
            if weight.grad is not None and weight.grad.is_sparse:
                rows = weight.grad.coalesce()
                if weight not in self._dense:
                    self._dense[weight] = torch.zeros_like(weight)
                weight.grad = self._dense[weight].index_copy_(0, rows.indices()[0], rows.values())
                filled.append((weight.grad, rows.indices()[0]))
        try:
            yield
        finally:
            for gradient, rows in filled:
                gradient.index_fill_(0, rows, 0)


@contextmanager
def table_gradients(model: nn.Module, device: torch.device) -> Iterator[TableGradients]:
    """Within, the look-ups of a model keep the gradients of rows alone, where that pays.

    Raises ``RuntimeError`` for a model that another loop is training.
    """
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    tables: list[LookUp] = []
    if device.type == "cpu" and not several:  # DDP reduces dense gradients
        for module in model.modules():
            if isinstance(module, LookUp):
                raise RuntimeError("another loop is training this model; one of the two would lose gradients")
            if type(module) is nn.Embedding and module.weight.requires_grad:
                module.__class__ = LookUp
                assert isinstance(module, LookUp)
                module.alias = module.weight.detach().requires_grad_()
                tables.append(module)
    try:
        yield TableGradients(tables)
    finally:
        for table in tables:
            del table.alias
            cast(nn.Module, table).__class__ = nn.Embedding

"""Gradients of embedding tables, of which a step reads few rows.

The gradient of a table is zero but for the rows that were read. Filling it with zeros, its norm, and scaling it down
are a pass each over the whole table, and on a CPU, with short texts, they can cost more than the model. Where one
process trains on a CPU, a table that is only looked up keeps the gradients of its rows alone until the optimizer asks
for all of it; the update is that of a dense gradient. A table that also predicts words has a dense gradient anyway.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor, nn


class TableGradients:
    """Has the tables of a model keep the gradients of rows alone, where that pays; in place."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        self._dense: dict[Tensor, Tensor] = {}
        self._tables: list[Tensor] = []
        if device.type == "cpu" and not several:  # DDP reduces dense gradients
            tables = [module for module in model.modules() if isinstance(module, nn.Embedding)]
            others = [module for module in model.modules() if not isinstance(module, nn.Embedding)]
            shared = {id(parameter) for module in others for parameter in module.parameters(recurse=False)}
            for table in tables:
                table.sparse = id(table.weight) not in shared
            self._tables = [*{id(table.weight): table.weight for table in tables if table.sparse}.values()]

    @contextmanager
    def dense(self) -> Iterator[None]:
        """What the optimizer reads within are dense gradients. Their memory stays, all zero, for the next step."""
        filled: list[tuple[Tensor, Tensor]] = []
        for table in self._tables:
            if table.grad is not None and table.grad.is_sparse:
                rows = table.grad.coalesce()
                if table not in self._dense:
                    self._dense[table] = torch.zeros_like(table)
                table.grad = self._dense[table].index_copy_(0, rows.indices()[0], rows.values())
                filled.append((table.grad, rows.indices()[0]))
        yield
        for gradient, rows in filled:
            gradient.index_fill_(0, rows, 0)

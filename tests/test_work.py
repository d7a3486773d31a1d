"""The work of a training step: how many operations it asks for, and how many bytes it makes, as batches grow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bertillery.engine.loop import share_of_loss
from bertillery.engine.objective import objective_module
from bertillery.models.layers import cross_entropy, gelu
from tests.pretrain.test_objectives import OBJECTIVES, TINY, make

LENGTH = 32


class Work(TorchDispatchMode):
    """Counts operations, and the bytes of what they make that was not there before."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.bytes = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        known = {_storage(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        made = {_storage(x): x for x in tree_leaves(result) if isinstance(x, Tensor)}
        self.operations += 1
        self.bytes += sum(x.untyped_storage().nbytes() for storage, x in made.items() if storage not in known)
        return result


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def work(name: str, number: int) -> tuple[int, int]:
    """Operations and bytes of forward and backward over examples of one length."""
    objective, source = make(objective_module("pretrain.objectives", {"type": name}), TINY)
    plan = source.examples(0, 0)
    rows = np.repeat(plan[plan["length"] == LENGTH][:1], number)
    rows["key"] = np.arange(number)
    batch = source.collate(rows)
    objective.train()
    share_of_loss(objective(batch), batch.counts).backward()
    objective.zero_grad(set_to_none=True)
    with Work() as counted:
        share_of_loss(objective(batch), batch.counts).backward()
    return counted.operations, counted.bytes


@pytest.mark.parametrize("name", OBJECTIVES)
def test_operations_do_not_grow_with_the_batch_and_bytes_grow_along_a_line(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is done example by example, and nothing is made for pairs of them. (Pieces that fit into the cache are
    done one by one.)"""
    monkeypatch.setattr(cross_entropy, "_IN_CACHE", 1 << 40)
    monkeypatch.setattr(gelu, "_IN_CACHE", 1 << 40)
    operations, made = zip(*(work(name, number) for number in (100, 200, 300)), strict=True)
    assert len({*operations}) == 1
    assert made[2] - made[1] == pytest.approx(made[1] - made[0], rel=0.02)

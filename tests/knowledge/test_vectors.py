"""Vectors that are drawn; those of TransE are tested where a task takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from knowledge.vectors import drawn_vectors
from tests.knowledge.graphs import write_graph


def test_drawn_vectors_are_the_same_again_and_each_its_own(tmp_path: Path) -> None:
    graph = write_graph(tmp_path, [(f"e{i}", f"r{i % 7}", f"e{i + 1}") for i in range(300)])
    concepts, relations = drawn_vectors(graph)
    assert (concepts.shape, relations.shape, concepts.dtype) == ((301, 100), (7, 100), np.float32)
    for table, again in zip((concepts, relations), drawn_vectors(graph), strict=True):
        np.testing.assert_array_equal(table, again)
        lengths = np.linalg.norm(table, axis=1)
        assert 0.8 < lengths.min() <= lengths.max() < 1.2
    alike = concepts @ concepts.T - np.diag((concepts**2).sum(1))
    assert np.abs(alike).max() < 0.6

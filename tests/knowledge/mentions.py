"""A corpus in which every fifth token or so begins a mention of one of a few entities."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from knowledge.graph import Graph
from knowledge.links.linked import Knowledge
from knowledge.prepare import GraphSection, prepare_graph

ENTITIES, WIDTH = 40, 12


@cache
def small_graph() -> Graph:
    """A ring of entities."""
    folder = Path(tempfile.mkdtemp(prefix="graph-"))
    (folder / "t.tsv").write_text("\n".join(f"e{i}\tr\te{(i + 1) % ENTITIES}" for i in range(ENTITIES)))
    return prepare_graph(GraphSection(path=[str(folder / "t.tsv")], holdout=1e-9), folder / "cache")


def mentions(tokens: Any) -> Knowledge:
    """Random ones in ``tokens``, which are the training and the held-out part."""
    vectors = torch.nn.functional.normalize(
        torch.randn(ENTITIES + 1, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    vectors[0] = 0
    rng = np.random.default_rng(0)
    rows = np.where(rng.random(len(tokens.ids)) < 0.2, rng.integers(1, ENTITIES + 1, len(tokens.ids)), 0)
    corpus: Any = type("Corpus", (), {"train": tokens, "valid": tokens})()
    return Knowledge(small_graph(), vectors, corpus, rows.astype(np.int32), rows.astype(np.int32))

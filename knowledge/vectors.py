"""Vectors of a graph's entities and relations: those of a knowledge graph embedding, or drawn ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from bertillery.config.section import ConfigError
from bertillery.engine.rng import uniform
from bertillery.models.export import warnings_of_transformers
from bertillery.models.families.transe import TransEModel
from bertillery.models.folder import reading, safely
from bertillery.system.invocation import command_line
from knowledge.graph import Graph

_WIDTH = 100
"""Of drawn vectors."""


def read_vectors(folder: str, graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length 1, of entities (E, width) and relations (R, width), float32, that TransE left in ``folder``.

    Raises ``ConfigError`` where there is no such model, or it is of another graph: its names are compared.
    """
    remedy = f"give the export of `{command_line('embed')}` with the same graph"
    with warnings_of_transformers(), reading(f"{folder}: no vectors of a graph can be read there", remedy):
        kind = AutoConfig.from_pretrained(folder, **safely(folder)).model_type
        if kind != "transe":
            raise ConfigError(f"{folder}: a model of type {kind!r}, and no vectors of a graph; {remedy}")
        model: Any = AutoModel.from_pretrained(folder, **safely(folder))
        rows: dict[str, int] = AutoTokenizer.from_pretrained(folder, **safely(folder)).get_vocab()
    assert isinstance(model, TransEModel)
    other = next((name for row, name in enumerate(graph.names, 1) if rows.get(name) != row), None)
    if other is None and len(rows) == graph.num_entities + 1 and model.config.num_relations == graph.num_relations:
        with torch.no_grad():
            entities = model.entity_vectors()[1:]
            relations = model.relation_vectors(torch.arange(graph.num_relations))
        return entities.float().numpy(), relations.float().numpy()
    found = f"{len(rows) - 1:,} entities and {model.config.num_relations} relations"
    wanted = f"{graph.num_entities:,} and {graph.num_relations}"
    lacking = "" if other is None else f"; {other!r} is not where it is in the graph"
    raise ConfigError(f"{folder}: vectors of another graph: {found}, where this one has {wanted}{lacking}; {remedy}")


def drawn_vectors(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of length about 1 that say which is which, and nothing else; a hash of both numbers draws each entry."""
    scale = (12 / _WIDTH) ** 0.5
    tables = []
    for purpose, number in enumerate((graph.num_entities, graph.num_relations)):
        table = np.empty((number, _WIDTH), np.float32)
        for at in range(0, number, 1 << 14):
            rows = np.arange(at, min(number, at + (1 << 14)))
            table[rows] = scale * (uniform(purpose, rows[:, None], np.arange(_WIDTH)) - 0.5)
        tables.append(table)
    return tables[0], tables[1]

"""The entities of a text that ERNIE reads: what a dictionary links, and what the model names where nothing is shown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from bertillery.config.section import InputError
from bertillery.models.encoders import encode
from bertillery.system.records import read_yaml
from knowledge.graph import Graph
from knowledge.links.linked import link_texts, linker_of
from knowledge.prepare import GraphSection, prepare_graph, within
from pages.blocks import Block, Mark, Marks, Paragraph, Table
from pages.tokens import Read


class _Reads(BaseModel):
    """A section that may name a graph; one of a task names its files from ``root``."""

    model_config = ConfigDict(extra="ignore")
    graph: GraphSection | None = None
    root: Path = Path()


class _Folders(BaseModel):
    model_config = ConfigDict(extra="ignore")
    data_dir: Path = Path("data")


class _Training(BaseModel):
    """What the configuration of a run, of pretraining or on a task, says of its graph."""

    model_config = ConfigDict(extra="ignore")
    objective: _Reads = _Reads()
    task: _Reads = _Reads()
    run: _Folders = _Folders()


def data_dir_of(start: str) -> Path:
    """Where the run of an export prepared its graph."""
    file = Path(start).parent / "config.yaml"
    return read_yaml(file, _Training, remedy="restore it").run.data_dir if file.is_file() else _Folders().data_dir


def graph_of(start: str) -> Graph | str:
    """The graph that the run of an export was linked with, or why there is none."""
    file = Path(start).parent / "config.yaml"
    if not file.is_file():
        return f"which graph this model was trained with is not known: there is no {file}"
    try:
        found = read_yaml(file, _Training, remedy="restore it")
        reads = found.objective if found.objective.graph else found.task
        if reads.graph is None:
            return "this model was trained on texts alone: its run names no graph"
        return prepare_graph(within(reads.graph, reads.root), found.run.data_dir)
    except InputError as error:
        return f"the graph that this model was trained with cannot be read: {error}"


def linked(text: Read, tokenizer: Any, graph: Graph) -> Read:
    """The text with the entities that the dictionary of the graph finds in it."""
    inside = np.array([token for token, special in zip(text.ids, text.special, strict=True) if not special])
    found = link_texts(inside, np.array([0, len(inside)]), tokenizer, linker_of(graph, tokenizer))
    rows = iter(found.tolist())
    return replace(text, entities=[0 if special else next(rows) for special in text.special])


def entity_blocks(model: Any, text: Read, graph: Graph) -> Iterator[Block]:
    """The links of a text, and what the model names without being shown any."""
    rows = text.entities or []
    names = {place: graph.labels[row - 1] for place, row in enumerate(rows) if row}
    if not names:
        yield Paragraph("The dictionary of the graph's labels and aliases finds no entity in this text.")
        return
    marks = [
        Mark(
            token,
            float(place in names),
            f"linked to {names[place]}" if place in names else "no entity",
            names.get(place, ""),
        )
        for place, (token, special) in enumerate(zip(text.tokens, text.special, strict=True))
        if not special
    ]
    yield Marks("Entities, at the first token of each mention", marks)
    if hasattr(model, "entity_logits"):
        yield _named(model, text, graph, names)


def _named(model: Any, text: Read, graph: Graph, names: dict[int, str]) -> Table:
    candidates = torch.tensor([0, *sorted({row for row in text.entities or [] if row})])
    hidden = encode(model, replace(text, entities=None).stream)[torch.tensor([*names])]
    shares = model.entity_logits(hidden, candidates.expand(len(names), -1)).softmax(-1)
    rows = [["mention", "the dictionary says", "the model names", "with probability"]]
    for (place, name), share in zip(names.items(), shares, strict=True):
        best = int(candidates[share.argmax()])
        named = graph.labels[best - 1] if best else "none"
        rows.append([text.tokens[place], name, named, f"{float(share.max()):.1%}"])
    return Table("Named by the model among the entities of this text, while none is shown to it", rows)

"""The entities of a text that ERNIE reads: what a dictionary links, and what the model names where nothing is shown."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict

from bertillery.config.section import InputError
from bertillery.engine.batch import pack_stream
from bertillery.models.attention import Recorded
from bertillery.models.encoders import encode, model_inputs
from bertillery.system.records import read_yaml
from knowledge.graph import Graph, GraphSection, prepare_graph
from knowledge.linked import link_ids
from pages.blocks import Block, Mark, Marks, Paragraph, Table
from pages.tokens import Read


class _Objective(BaseModel):
    model_config = ConfigDict(extra="ignore")
    graph: GraphSection


class _Folders(BaseModel):
    model_config = ConfigDict(extra="ignore")
    data_dir: Path = Path("data")


class _Pretraining(BaseModel):
    model_config = ConfigDict(extra="ignore")
    objective: _Objective
    run: _Folders = _Folders()


def graph_of(start: str) -> Graph | str:
    """The graph that the run of an export was linked with, or why there is none."""
    file = Path(start).parent / "config.yaml"
    if not file.is_file():
        return f"which graph this model was trained with is not known: there is no {file}"
    try:
        found = read_yaml(file, _Pretraining, remedy="restore it")
        return prepare_graph(found.objective.graph, found.run.data_dir)
    except InputError as error:
        return f"the graph that this model was trained with cannot be read: {error}"


class Linked:
    """A text with the rows of its entities."""

    def __init__(self, text: Read, tokenizer: Any, graph: Graph) -> None:
        self.text, self.graph = text, graph
        inside = [token for token, special in zip(text.ids, text.special, strict=True) if not special]
        rows = iter(link_ids(inside, tokenizer, graph).tolist())
        self.rows = [0 if special else next(rows) for special in text.special]
        """0 for none, for each token."""

    def inputs(self, config: Any) -> dict[str, Any]:
        """Arguments of the model, with the entities: [CLS] first, whose row is 0."""
        places = [0, *(place for place, row in enumerate(self.rows) if row)]
        stream = pack_stream(np.array([self.rows[place] for place in places]), np.array([len(places)]))
        shown = {"entity_ids": stream.ids[None], "entity_layout": stream.layout, "entity_rows": torch.tensor(places)}
        return model_inputs(config, self.text.stream) | shown

    def recorded(self, model: Any) -> list[Recorded]:
        """Queries and keys of the text's attention where the entities are shown."""
        record: list[Recorded] = []
        model.base_model(**self.inputs(model.config), record=record)
        return record

    def blocks(self, model: Any) -> Iterator[Block]:
        """The links, and what the model names without being shown any."""
        places = [place for place, row in enumerate(self.rows) if row]
        if not places:
            yield Paragraph("The dictionary of the graph's labels and aliases finds no entity in this text.")
            return
        names = {place: self.graph.labels[self.rows[place] - 1] for place in places}
        yield Marks(
            "Entities, at the first token of each mention",
            [
                Mark(
                    token,
                    float(place in names),
                    f"linked to {names[place]}" if place in names else "no entity",
                    names.get(place, ""),
                )
                for place, (token, special) in enumerate(zip(self.text.tokens, self.text.special, strict=True))
                if not special
            ],
        )
        if not hasattr(model, "entity_logits"):
            return
        candidates = torch.tensor([0, *sorted({self.rows[place] for place in places})])
        hidden = encode(model, self.text.stream)[torch.tensor(places)]
        shares = model.entity_logits(hidden, candidates.expand(len(places), -1)).softmax(-1)
        rows = [["mention", "the dictionary says", "the model names", "with probability"]]
        for place, share in zip(places, shares, strict=True):
            best = int(candidates[share.argmax()])
            named = self.graph.labels[best - 1] if best else "none"
            rows.append([self.text.tokens[place], names[place], named, f"{float(share.max()):.1%}"])
        yield Table("Named by the model among the entities of this text, while none is shown to it", rows)

"""The entities of a corpus: for each token of it, the entity whose mention begins there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bertillery.config.layers import CONFIGS, read_values
from bertillery.config.section import validate
from bertillery.data.prepared import PreparedCorpus, TokenArrays
from bertillery.data.tokenizer import starts_of_words
from bertillery.run.inputs import digest
from bertillery.run.stage import StageConfig
from bertillery.system.files import make_once
from knowledge.graph import Graph
from knowledge.links.given import GivenMentions
from knowledge.links.linker import Linker
from knowledge.prepare import GraphSection
from knowledge.stage import EmbedConfig
from knowledge.vectors import read_vectors

_VERSION = 2
"""Part of the folder's name; raise it when linking changes."""


@dataclass(frozen=True)
class Knowledge:
    """A graph, its entities' vectors, and where a corpus mentions them."""

    graph: Graph
    vectors: Tensor
    """(E+1, D) float32, of length 1; row 0 is zero and stands for no entity."""
    corpus: PreparedCorpus
    train: np.ndarray
    """int32 (T,): for each token of the training part 0, or the row of the entity whose mention begins there."""
    valid: np.ndarray
    """The same of the held-out part."""

    def rows(self, tokens: TokenArrays) -> np.ndarray:
        """Those of a part of the corpus."""
        return self.train if tokens is self.corpus.train else self.valid

    def describe(self) -> str:
        """How many mentions of how many entities."""
        counts = [np.count_nonzero(part) for part in (self.train, self.valid)]
        share = counts[0] / max(1, len(self.train))
        named = len(np.unique(self.train)) - 1
        return (
            f"entities    {counts[0]:,} mentions of {named:,} entities in the training text ({share:.1%} of the "
            f"tokens), {counts[1]:,} in the held-out text"
        )


def link_corpus(
    corpus: PreparedCorpus, graph: Graph, vectors: Tensor, cache: Path, given: GivenMentions | None
) -> Knowledge:
    """The ``given`` mentions of a corpus, or those that the graph's dictionary finds; if ``cache`` lacks them, one
    process makes them."""
    parts = [_VERSION, corpus.fingerprint.sha256, graph.fingerprint.sha256]
    name = digest(parts if given is None else [*parts, corpus.path.name, given.column, given.skip])[:16]
    folder = cache / f"linked-{name}"

    def make(partial: Path) -> Path:
        made = partial / "linked"
        made.mkdir(exist_ok=True)
        tokenizer = corpus.tokenizer()
        if given is None:
            linker = linker_of(graph, tokenizer)
            halves = {"train": corpus.train, "valid": corpus.valid}
            rows = {key: link_texts(half.ids, half.sentences, tokenizer, linker) for key, half in halves.items()}
        else:
            rows = given.rows(corpus, {name: row for row, name in enumerate(graph.names, 1)})
        for part, values in rows.items():
            values.tofile(made / f"{part}.bin")
        return made

    make_once(folder, make, doing="is linking this corpus")
    parts = [np.memmap(folder / f"{part}.bin", np.int32, "r") for part in ("train", "valid")]
    return Knowledge(graph, vectors, corpus, *parts)


def _lowercases(tokenizer: PreTrainedTokenizerBase) -> bool:
    known = tokenizer.get_vocab().keys() & {"A", "▁A"}
    return not known or tokenizer.tokenize("A") == tokenizer.tokenize("a")


def linker_of(graph: Graph, tokenizer: PreTrainedTokenizerBase) -> Linker:
    """The dictionary of a graph, for texts with or without capitals as the tokenizer leaves them."""
    return Linker(graph, cased=not _lowercases(tokenizer))


def link_texts(
    token_ids: np.ndarray, bounds: np.ndarray, tokenizer: PreTrainedTokenizerBase, linker: Linker
) -> np.ndarray:
    """For each token (T,) of texts end to end, which ``bounds`` (N+1,) part, 0 or the row of the entity whose mention
    begins there: int32 (T,)."""
    found = np.zeros(len(token_ids), np.int32)
    opens = starts_of_words(tokenizer)
    pieces: Any = tokenizer.convert_ids_to_tokens([*range(len(opens))])
    texts = [(piece or "").removeprefix("##").removeprefix("▁") for piece in pieces]
    for begin, end in pairwise(np.asarray(bounds).tolist()):
        ids = token_ids[begin:end].tolist()
        words: list[str] = []
        places: list[int] = []
        for place, number in enumerate(ids):
            if opens[number] or not words:
                words.append(texts[number])
                places.append(place)
            else:
                words[-1] += texts[number]
        for mention in linker.link(words):
            found[begin + places[mention.start]] = mention.entity + 1
    return found


def embed_config(graph: GraphSection, config: StageConfig) -> EmbedConfig:
    """The training of TransE, as ``configs/embed/transe_docs.yaml`` says, that a run makes before its own."""
    known = validate(EmbedConfig, *read_values([str(CONFIGS / "embed" / "transe_docs.yaml")]))
    run = config.run.model_copy(update={"name": f"transe_{config.run.name}", "sharding": "none", "compile": False})
    return known.model_copy(update={"graph": graph, "run": run, "tracking": config.tracking})


def entity_table(path: str, graph: Graph) -> Tensor:
    """The vectors of a graph's entities behind a row of zeros, float32 (E+1, D); raises what
    :func:`knowledge.vectors.read_vectors` does."""
    entities, _ = read_vectors(path, graph)
    return torch.cat([torch.zeros(1, entities.shape[1]), torch.from_numpy(entities)])

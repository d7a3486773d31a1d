"""The entities of a corpus: for each token of it, the entity whose mention begins there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from bertillery.config.section import CONFIGS, read_values, validate
from bertillery.data.prepared import PreparedCorpus, TokenArrays
from bertillery.data.tokenizer import starts_of_words
from bertillery.models.frame import text_backend
from bertillery.run.inputs import digest
from bertillery.run.stage import StageConfig
from bertillery.system.files import make_once
from knowledge.graph import Graph, GraphSection
from knowledge.linker import Linker
from knowledge.stage import EmbedConfig
from knowledge.vectors import read_vectors

_VERSION = 1
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


def link_corpus(corpus: PreparedCorpus, graph: Graph, vectors: Tensor, cache: Path) -> Knowledge:
    """Find the mentions of a corpus; if ``cache`` lacks them, one process does it."""
    name = digest([_VERSION, corpus.fingerprint.sha256, graph.fingerprint.sha256])[:16]
    folder = cache / f"linked-{name}"

    def make(partial: Path) -> Path:
        made = partial / "linked"
        made.mkdir(exist_ok=True)
        tokenizer = corpus.tokenizer()
        linker = linker_of(graph, tokenizer)
        for part in ("train", "valid"):
            tokens: TokenArrays = getattr(corpus, part)
            link_texts(tokens.ids, tokens.sentences, tokenizer, linker).tofile(made / f"{part}.bin")
        return made

    make_once(folder, make, doing="is linking this corpus")
    parts = [np.memmap(folder / f"{part}.bin", np.int32, "r") for part in ("train", "valid")]
    return Knowledge(graph, vectors, corpus, *parts)


def _lowercases(tokenizer: PreTrainedTokenizerBase) -> bool:
    return (tokenizer.tokenize("A") != tokenizer.tokenize("a") and not tokenizer.get_vocab().keys() & {"A", "▁A"}) or (
        tokenizer.tokenize("A") == tokenizer.tokenize("a")
    )


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


class Mention(NamedTuple):
    """Characters ``start`` to ``end`` (not included) of a text, and the name of the entity that they mention."""

    start: int
    end: int
    entity: str


def read_mentions(cells: Any, text: str) -> list[Mention]:
    """The mentions of a text, ``[[start, end, name], ...]``, in its order. ``ValueError`` for what is none, lies
    outside of the text, or overlaps another."""
    if not isinstance(cells, list):
        raise ValueError(f"mentions are a list of [start, end, name], not {cells!r:.200}")
    found = []
    for cell in cells:
        numbered = isinstance(cell, list) and len(cell) == 3 and all(type(each) is int for each in cell[:2])
        if not numbered or not isinstance(cell[2], str):
            raise ValueError(f"a mention is [start, end, name], not {cell!r:.200}")
        found.append(Mention(*cell))
        if not 0 <= cell[0] < cell[1] <= len(text):
            raise ValueError(f"the mention {cell} is no part of a text of {len(text):,} characters")
    found.sort()
    for first, second in pairwise(found):
        if second.start < first.end:
            raise ValueError(f"the mentions {[*first]} and {[*second]} overlap; give one of them")
    return found


def first_tokens(text: str, mentions: Sequence[Mention], tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """The token of the text in which each mention begins, int64; -1 for one of which no token is left."""
    if not mentions:
        return np.zeros(0, np.int64)
    offsets = np.array(text_backend(tokenizer).encode(text, add_special_tokens=False).offsets, np.int64).reshape(-1, 2)
    starts, ends = np.array([mention[:2] for mention in mentions], np.int64).T
    places = np.searchsorted(offsets[:, 1], starts, side="right")
    there = places < len(offsets)
    there[there] = offsets[places[there], 0] < ends[there]
    return np.where(there, places, -1)


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
